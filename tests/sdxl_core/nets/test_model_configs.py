"""Component configurations against the released files, and against what is not SDXL."""

import copy
import dataclasses

import pytest

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.model_configs import (
    component_configs,
    preset_from_json,
    preset_of_configs,
    preset_to_json,
)
from sdxl_core.nets.presets import PRESETS, SDXL_BASE, SDXL_REFINER, TINY

ALL = pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)

# Values of the released config.json files; nulls and library defaults are left out.
RELEASED = {
    "sdxl-base": {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "in_channels": 4,
            "layers_per_block": 2,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_eps": 1e-05,
            "norm_num_groups": 32,
            "out_channels": 4,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "use_linear_projection": True,
        },
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "pad_token_id": 1,
            "projection_dim": 768,
            "vocab_size": 49408,
        },
    },
    "sdxl-refiner": {
        "unet": {
            "attention_head_dim": [6, 12, 24, 24],
            "block_out_channels": [384, 768, 1536, 1536],
            "cross_attention_dim": 1280,
            "down_block_types": [
                "DownBlock2D",
                "CrossAttnDownBlock2D",
                "CrossAttnDownBlock2D",
                "DownBlock2D",
            ],
            "projection_class_embeddings_input_dim": 2560,
            "sample_size": 128,
            "transformer_layers_per_block": 4,
            "up_block_types": [
                "UpBlock2D",
                "CrossAttnUpBlock2D",
                "CrossAttnUpBlock2D",
                "UpBlock2D",
            ],
        },
    },
}
RELEASED_SHARED = {
    "text_encoder_2": {
        "architectures": ["CLIPTextModelWithProjection"],
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
        "vocab_size": 49408,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
}


def as_json(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("preset", [SDXL_BASE, SDXL_REFINER], ids=lambda p: p.name)
def test_full_size_configs_hold_the_released_values(preset):
    configs = component_configs(preset)
    for component, expected in {**RELEASED_SHARED, **RELEASED[preset.name]}.items():
        found = {name: as_json(configs[component].get(name)) for name in expected}
        assert found == expected


@pytest.mark.parametrize("preset", [SDXL_BASE, SDXL_REFINER], ids=lambda p: p.name)
def test_released_configs_are_recognised_as_the_preset(preset):
    released = {**RELEASED_SHARED, **RELEASED[preset.name]}
    configs = {
        c: {**config, **released.get(c, {})} for c, config in component_configs(preset).items()
    }
    # What the released files also hold: null for defaults, and notes of the library.
    configs["unet"].update(upcast_attention=None, time_cond_proj_dim=None, _diffusers_version="0")
    configs["vae"].update(latents_mean=None, _name_or_path="../sdxl-vae/")
    assert preset_of_configs(configs, url="x") == preset


@ALL
def test_configs_and_metadata_give_back_the_preset(preset):
    assert preset_of_configs(component_configs(preset), url="x") == preset
    assert preset_from_json(preset_to_json(preset), url="x") == preset


def test_float16_safe_autoencoder_keeps_the_name_of_the_preset_and_its_own_declaration():
    configs = component_configs(SDXL_BASE)
    configs["vae"]["force_upcast"] = False
    found = preset_of_configs(configs, url="x")
    assert found.name == "sdxl-base"
    assert not found.vae.force_upcast


def test_other_sizes_are_a_custom_preset():
    configs = component_configs(TINY)
    configs["unet"]["block_out_channels"] = [32, 48, 96]
    found = preset_of_configs(configs, url="x")
    expected_unet = dataclasses.replace(TINY.unet, block_out_channels=(32, 48, 96))
    assert found == dataclasses.replace(TINY, name="custom", unet=expected_unet)


@pytest.mark.parametrize(
    ("component", "name", "value", "message"),
    [
        ("unet", "in_channels", 9, "found in_channels = 9, expected 4"),  # inpainting
        ("unet", "class_embed_type", "projection", "class_embed_type"),
        ("unet", "addition_embed_type", "text", "addition_embed_type"),
        ("unet", "encoder_hid_dim_type", "ip_image_proj", "encoder_hid_dim_type"),
        ("unet", "block_out_channels", None, "block_out_channels is missing"),
        ("unet", "projection_class_embeddings_input_dim", 100, "expected 224"),
        ("vae", "latent_channels", 16, "found latent_channels = 16, expected 4"),
        ("vae", "latents_mean", [0.0, 0.0, 0.0, 0.0], "latents_mean"),
        ("vae", "block_out_channels", [8, 8, 8], "expected 4"),
        ("text_encoder_2", "hidden_act", "relu", "hidden_act"),
        ("text_encoder_2", "vocab_size", 1000, "expected CLIP's 49408"),
        ("text_encoder", "hidden_size", None, "hidden_size is missing"),
    ],
)
def test_setting_that_no_sdxl_model_has_is_refused_with_its_file(component, name, value, message):
    configs = copy.deepcopy(component_configs(TINY))
    configs[component][name] = value
    with pytest.raises(WeightsError, match=message) as caught:
        preset_of_configs(configs, url="s3://models/x")
    assert f"s3://models/x/{'unet' if 'projection_class' in name else component}/" in str(
        caught.value
    )
