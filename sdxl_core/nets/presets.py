"""The sizes of the networks: the released SDXL base and refiner, and the embedded toy pair.

A preset is data only. ``sdxl_core.nets.build`` turns one into networks, ``weights`` fills them. The
full-size numbers are the released diffusers configuration files; the toy pair has the same block
types with every size knob smaller, so that whatever runs on one runs on the other.
"""

import dataclasses
from typing import Any, Literal

from sdxl_core.contract.errors import ConfigError

ModelKind = Literal["base", "refiner"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPreset:
    """One CLIP text tower. ``activation`` is ``quick_gelu`` (encoder 1) or ``gelu`` (encoder 2)."""

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: Literal["quick_gelu", "gelu"]
    projection_width: int
    vocab_size: int = 49408
    num_positions: int = 77


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetPreset:
    """Arguments of diffusers' ``UNet2DConditionModel`` that differ between presets, under its own
    names.

    ``attention_head_dim`` counts heads per level: the released files use the key that way.
    """

    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    attention_head_dim: tuple[int, ...]
    transformer_layers_per_block: tuple[int, ...] | int
    cross_attention_dim: int
    addition_time_embed_dim: int
    projection_class_embeddings_input_dim: int
    sample_size: int
    norm_num_groups: int = 32

    def diffusers_config(self) -> dict[str, Any]:
        """Keyword arguments for ``UNet2DConditionModel``, with the values that all SDXL UNets
        share.
        """
        return {
            **dataclasses.asdict(self),
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 2,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "addition_embed_type": "text_time",
            "use_linear_projection": True,
            "act_fn": "silu",
            "norm_eps": 1e-5,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaePreset:
    """Arguments of diffusers' ``AutoencoderKL`` that differ between presets; the factor is always
    8.
    """

    block_out_channels: tuple[int, ...]
    sample_size: int
    scaling_factor: float
    layers_per_block: int = 2
    norm_num_groups: int = 32
    force_upcast: bool = True

    def diffusers_config(self) -> dict[str, Any]:
        """Keyword arguments for ``AutoencoderKL``, with the values that all SDXL autoencoders
        share.
        """
        num_levels = len(self.block_out_channels)
        return {
            **dataclasses.asdict(self),
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "act_fn": "silu",
            "down_block_types": ("DownEncoderBlock2D",) * num_levels,
            "up_block_types": ("UpDecoderBlock2D",) * num_levels,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPreset:
    """A whole model. The refiner has no ``text_1`` and takes an aesthetic score instead of a target
    size.
    """

    name: str
    kind: ModelKind
    unet: UNetPreset
    vae: VaePreset
    text_1: TextPreset | None
    text_2: TextPreset

    @property
    def num_time_ids(self) -> int:
        """6 for the base (size, crop, target), 5 for the refiner (size, crop, aesthetic score)."""
        return 6 if self.kind == "base" else 5

    @property
    def native_size_px(self) -> int:
        """Side of the square image that the model is made for."""
        return self.unet.sample_size * 8


_SDXL_VAE = VaePreset(
    block_out_channels=(128, 256, 512, 512), sample_size=1024, scaling_factor=0.13025
)
_SDXL_TEXT_2 = TextPreset(
    width=1280,
    num_layers=32,
    num_heads=20,
    mlp_width=5120,
    activation="gelu",
    projection_width=1280,
)
_BASE_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
_BASE_UP = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
_REFINER_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
_REFINER_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")

SDXL_BASE = ModelPreset(
    name="sdxl-base",
    kind="base",
    unet=UNetPreset(
        block_out_channels=(320, 640, 1280),
        down_block_types=_BASE_DOWN,
        up_block_types=_BASE_UP,
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        sample_size=128,
    ),
    vae=_SDXL_VAE,
    text_1=TextPreset(
        width=768,
        num_layers=12,
        num_heads=12,
        mlp_width=3072,
        activation="quick_gelu",
        projection_width=768,
    ),
    text_2=_SDXL_TEXT_2,
)

SDXL_REFINER = ModelPreset(
    name="sdxl-refiner",
    kind="refiner",
    unet=UNetPreset(
        block_out_channels=(384, 768, 1536, 1536),
        down_block_types=_REFINER_DOWN,
        up_block_types=_REFINER_UP,
        attention_head_dim=(6, 12, 24, 24),
        transformer_layers_per_block=4,
        cross_attention_dim=1280,
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2560,
        sample_size=128,
    ),
    vae=_SDXL_VAE,
    text_1=None,
    text_2=_SDXL_TEXT_2,
)

# Toy sizes are bounded by the 40 MB that both models' weights may take in the wheel, as float16.
# The vocabulary is the real one (49,408 tokens), so the embedding tables dominate and the towers
# are narrow.
_TINY_VAE = VaePreset(
    block_out_channels=(24, 48, 96, 96),
    sample_size=128,
    scaling_factor=0.13025,
    layers_per_block=1,
    norm_num_groups=4,
)
_TINY_TEXT_2 = TextPreset(
    width=32, num_layers=5, num_heads=2, mlp_width=128, activation="gelu", projection_width=32
)

TINY = ModelPreset(
    name="tiny",
    kind="base",
    unet=UNetPreset(
        block_out_channels=(64, 96, 96),
        down_block_types=_BASE_DOWN,
        up_block_types=_BASE_UP,
        attention_head_dim=(2, 3, 3),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=64,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=32 + 6 * 32,
        sample_size=16,
        norm_num_groups=16,
    ),
    vae=_TINY_VAE,
    text_1=TextPreset(
        width=32,
        num_layers=5,
        num_heads=2,
        mlp_width=128,
        activation="quick_gelu",
        projection_width=32,
    ),
    text_2=_TINY_TEXT_2,
)

TINY_REFINER = ModelPreset(
    name="tiny-refiner",
    kind="refiner",
    unet=UNetPreset(
        block_out_channels=(64, 64, 32, 32),
        down_block_types=_REFINER_DOWN,
        up_block_types=_REFINER_UP,
        attention_head_dim=(2, 2, 2, 1),
        transformer_layers_per_block=1,
        cross_attention_dim=32,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=32 + 5 * 32,
        sample_size=16,
        norm_num_groups=8,
    ),
    vae=_TINY_VAE,
    text_1=None,
    text_2=_TINY_TEXT_2,
)

PRESETS = {preset.name: preset for preset in (SDXL_BASE, SDXL_REFINER, TINY, TINY_REFINER)}


def get_preset(name: str) -> ModelPreset:
    """Returns the preset called ``name``.

    Raises:
        ConfigError: if there is none; the message lists those that exist.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset: found {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
