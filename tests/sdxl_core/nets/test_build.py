"""Sizes of the networks against the paper, the released files and each other."""

import pytest
import torch

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.build import build_networks, build_text_1
from sdxl_core.nets.presets import SDXL_BASE, SDXL_REFINER, TINY, TINY_REFINER, ModelPreset

# Exact counts; 2.6B, 817M for both text encoders and 83.7M in the paper and the model cards.
PARAMETERS = {
    "sdxl-base": {
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "unet": 2_567_463_684,
        "vae": 83_653_863,
    },
    "sdxl-refiner": {
        "text_encoder_2": 694_659_840,
        "unet": 2_259_526_660,
        "vae": 83_653_863,
    },
}


def meta_networks(preset: ModelPreset):
    with torch.device("meta"):
        return build_networks(preset)


@pytest.mark.parametrize("preset", [SDXL_BASE, SDXL_REFINER], ids=lambda p: p.name)
def test_full_size_networks_have_the_released_number_of_parameters(preset):
    counts = {
        component: sum(parameter.numel() for parameter in network.parameters())
        for component, network in meta_networks(preset).items()
    }
    assert counts == PARAMETERS[preset.name]


@pytest.mark.parametrize(
    ("tiny", "full"), [(TINY, SDXL_BASE), (TINY_REFINER, SDXL_REFINER)], ids=["base", "refiner"]
)
def test_tiny_networks_have_the_same_kinds_of_blocks_as_full_size_ones(tiny, full):
    assert tiny.unet.down_block_types == full.unet.down_block_types
    assert tiny.unet.up_block_types == full.unet.up_block_types
    assert tiny.num_time_ids == full.num_time_ids
    assert len(tiny.vae.block_out_channels) == len(full.vae.block_out_channels)
    modules = [
        {c: {type(m) for m in network.modules()} for c, network in meta_networks(preset).items()}
        for preset in (tiny, full)
    ]
    assert modules[0] == modules[1]


@pytest.mark.parametrize("preset", [TINY, TINY_REFINER], ids=lambda p: p.name)
def test_tiny_models_fit_the_wheel_as_float16(preset):
    # 40 MB for both, by the design
    num_bytes = 2 * sum(p.numel() for n in meta_networks(preset).values() for p in n.parameters())
    assert num_bytes < {"tiny": 27e6, "tiny-refiner": 13e6}[preset.name]


def test_networks_are_in_evaluation_mode():
    assert not any(m.training for n in build_networks(TINY).values() for m in n.modules())


def test_refiner_has_no_first_text_encoder():
    assert "text_encoder" not in meta_networks(SDXL_REFINER)
    with pytest.raises(ConfigError, match="no text encoder 1"):
        build_text_1(SDXL_REFINER)
