"""Models of a few thousand weights behind the real vocabulary: whatever runs on them takes seconds.

The one pair of toy sizes in these tests. Both encoders, both networks and all four levels of the
autoencoder differ in width, so that nothing can be taken for another thing.

Freshly built networks hardly listen: CLIP towers start with tiny embeddings. ``micro_model`` draws
every weight so wide that a changed word, size or scale changes the picture; the files that
``write_models`` makes are left nearly as they are built, and their pictures are steadier.
"""

import dataclasses
import functools
from pathlib import Path

import torch
from torch import nn

from sdxl_core.nets.model import SdxlModel, random_model
from sdxl_core.nets.presets import (
    TINY,
    TINY_REFINER,
    ModelPreset,
    TextPreset,
    UNetPreset,
    VaePreset,
)
from sdxl_core.nets.tokenizer import PAD_ID_TEXT_2, tokenize
from sdxl_core.nets.weights import export_model

# The word whose meaning is NaN in the models that ``write_broken_model`` writes.
BROKEN_WORD = "zebra"

_VAE = VaePreset(
    block_out_channels=(8, 8, 16, 16), sample_size=128, scaling_factor=0.13025, norm_num_groups=4
)
_TEXT_2 = TextPreset(
    width=16, num_layers=2, num_heads=2, mlp_width=32, activation="gelu", projection_width=16
)
MICRO_BASE = ModelPreset(
    name="custom",
    kind="base",
    unet=UNetPreset(
        block_out_channels=(16, 32, 32),
        down_block_types=TINY.unet.down_block_types,
        up_block_types=TINY.unet.up_block_types,
        attention_head_dim=(1, 2, 2),
        transformer_layers_per_block=(1, 1, 1),
        cross_attention_dim=24 + 16,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
        sample_size=16,
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
MICRO_REFINER = ModelPreset(
    name="custom",
    kind="refiner",
    unet=UNetPreset(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=TINY_REFINER.unet.down_block_types,
        up_block_types=TINY_REFINER.unet.up_block_types,
        attention_head_dim=(1, 1, 2, 2),
        transformer_layers_per_block=1,
        cross_attention_dim=16,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 5 * 8,
        sample_size=16,
        norm_num_groups=4,
    ),
    vae=_VAE,
    text_1=None,
    text_2=_TEXT_2,
)


@functools.cache
def micro_model(kind: str) -> SdxlModel:
    """The ``base`` or the ``refiner`` in memory, always the same weights."""
    preset, seed = (MICRO_BASE, 1) if kind == "base" else (MICRO_REFINER, 2)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroModels:
    """Where the files are."""

    base: str
    refiner: str


def write_models(folder: Path) -> MicroModels:
    """A base and a refiner in the diffusers layout."""
    places = MicroModels(base=str(folder / "base"), refiner=str(folder / "refiner"))
    export_model(_steady(random_model(MICRO_BASE, seed=1)), places.base)
    export_model(_steady(random_model(MICRO_REFINER, seed=2)), places.refiner)
    return places


def write_broken_model(folder: Path) -> str:
    """The same base, but prompts with ``BROKEN_WORD`` make NaN."""
    model = random_model(MICRO_BASE, seed=1)
    ids_BT = tokenize([BROKEN_WORD], pad_id=PAD_ID_TEXT_2).ids_BT
    with torch.no_grad():
        model.text_2.token_embedding.weight[int(ids_BT[0, 1])] = torch.nan
    export_model(_steady(model), folder)
    return str(folder)


def write_overflowing_model(folder: Path) -> str:
    """The same base with one infinite weight: no row can be made with it."""
    model = random_model(MICRO_BASE, seed=1)
    with torch.no_grad():
        model.unet.conv_in.weight[0, 0, 0, 0] = torch.inf
    export_model(_steady(model), folder)
    return str(folder)


def _steady(model: SdxlModel) -> SdxlModel:
    """Larger output weights, so that prompt and size show in the pixels."""
    with torch.no_grad():
        model.unet.conv_out.weight *= 4
    return model
