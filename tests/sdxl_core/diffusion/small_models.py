"""A base and a refiner of a few thousand weights, and diffusers' own pipelines around them.

Freshly built networks hardly listen: CLIP towers start with tiny embeddings. Here every weight is
drawn so wide that a changed word, size or scale changes the picture.
"""

import dataclasses
import functools
from pathlib import Path

import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sdxl_core.nets.model import SdxlModel, random_model
from sdxl_core.nets.presets import TINY, TINY_REFINER, ModelPreset, TextPreset

_TEXT_2 = TextPreset(
    width=16, num_layers=2, num_heads=2, mlp_width=32, activation="gelu", projection_width=16
)
_VAE = dataclasses.replace(TINY.vae, block_out_channels=(8, 8, 16, 16))

SMALL_BASE = dataclasses.replace(
    TINY,
    name="small",
    unet=dataclasses.replace(
        TINY.unet,
        block_out_channels=(16, 32, 32),
        attention_head_dim=(1, 2, 2),
        transformer_layers_per_block=(1, 1, 1),
        cross_attention_dim=24 + 16,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
        norm_num_groups=4,
    ),
    vae=_VAE,
    text_1=TextPreset(
        width=24,
        num_layers=2,
        num_heads=2,
        mlp_width=48,
        activation="quick_gelu",
        projection_width=24,
    ),
    text_2=_TEXT_2,
)
SMALL_REFINER = dataclasses.replace(
    TINY_REFINER,
    name="small-refiner",
    unet=dataclasses.replace(
        TINY_REFINER.unet,
        block_out_channels=(16, 16, 32, 32),
        attention_head_dim=(1, 1, 2, 2),
        cross_attention_dim=16,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 5 * 8,
        norm_num_groups=4,
    ),
    vae=_VAE,
    text_2=_TEXT_2,
)


@functools.cache
def small_model(kind: str) -> SdxlModel:
    """The ``base`` or the ``refiner``, always the same weights."""
    preset, seed = (SMALL_BASE, 1) if kind == "base" else (SMALL_REFINER, 2)
    return attentive_model(preset, seed=seed)


def attentive_model(preset: ModelPreset, *, seed: int) -> SdxlModel:
    """A random model that its inputs matter to."""
    model = random_model(preset, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for network in model.networks.values():
        for name, parameter in network.named_parameters():
            _draw_wide(name, parameter, generator)
    return model


def _draw_wide(name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    with torch.no_grad():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
        elif "embedding" in name and "add_embedding" not in name and "time_emb" not in name:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)


def base_pipeline(model: SdxlModel, folder: Path) -> StableDiffusionXLPipeline:
    """diffusers' text-to-image pipeline around the same UNet, autoencoder and encoder 1.

    Args:
        model: The base.
        folder: An export of it; encoder 2, which diffusers takes from transformers, is read there.
    """
    return _quiet(
        StableDiffusionXLPipeline(
            vae=model.vae,
            text_encoder=model.text_1,
            text_encoder_2=_exported_text_2(folder),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            unet=model.unet,
            scheduler=EulerDiscreteScheduler(),
            force_zeros_for_empty_prompt=model.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
    )


def refiner_pipeline(model: SdxlModel, folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    """diffusers' image-to-image pipeline around the refiner; see ``base_pipeline``."""
    return _quiet(
        StableDiffusionXLImg2ImgPipeline(
            vae=model.vae,
            text_encoder=None,
            text_encoder_2=_exported_text_2(folder),
            tokenizer=None,
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            unet=model.unet,
            scheduler=EulerDiscreteScheduler(),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=model.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
    )


def _exported_text_2(folder: Path) -> CLIPTextModelWithProjection:
    encoder, loading = CLIPTextModelWithProjection.from_pretrained(
        folder / "text_encoder_2", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    return encoder.eval()


def _quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
