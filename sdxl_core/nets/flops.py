"""How many floating-point operations one forward of each network takes, counted, not estimated.

Networks are built on the meta device and run there under torch's counter, so a full-size count
needs no memory and no weights. A multiply-add counts as two operations; only matrix products,
convolutions and attention count, which is what utilisation figures are given in.
"""

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.components import network_builder
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.nets.text import encode_text_1, encode_text_2

_LATENT_CHANNELS = 4
_PX_PER_LATENT = 8


@functools.cache
def unet_flops(preset: ModelPreset, height_px: int, width_px: int) -> int:
    """Returns the operations of one UNet forward for one latent of a picture of this size.

    A guided row takes two forwards per step.

    Raises:
        ConfigError: if a side is not a positive multiple of 8 pixels.
    """
    height, width = _latent_size(height_px, width_px)
    unet = _without_memory("unet", preset)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(
            torch.empty(1, _LATENT_CHANNELS, height, width),
            torch.empty(1),
            torch.empty(1, preset.text_2.num_positions, preset.unet.cross_attention_dim),
            added_cond_kwargs={
                "text_embeds": torch.empty(1, preset.text_2.projection_width),
                "time_ids": torch.empty(1, preset.num_time_ids),
            },
        )
    return int(counter.get_total_flops())


@functools.cache
def num_unet_parameters(preset: ModelPreset) -> int:
    """Returns the number of weights of the UNet."""
    return sum(parameter.numel() for parameter in unet_without_memory(preset).parameters())


def unet_without_memory(preset: ModelPreset) -> nn.Module:
    """Returns the UNet on the meta device: names and sizes of layers, no weights."""
    unet: nn.Module = _without_memory("unet", preset)
    return unet


@functools.cache
def vae_decode_flops(preset: ModelPreset, height_px: int, width_px: int) -> int:
    """Returns the operations of decoding one latent to a picture of this size.

    Raises:
        ConfigError: if a side is not a positive multiple of 8 pixels.
    """
    height, width = _latent_size(height_px, width_px)
    vae = _without_memory("vae", preset)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.decode(torch.empty(1, _LATENT_CHANNELS, height, width))
    return int(counter.get_total_flops())


@functools.cache
def vae_encode_flops(preset: ModelPreset, height_px: int, width_px: int) -> int:
    """Returns the operations of encoding one picture of this size.

    Raises:
        ConfigError: if a side is not a positive multiple of 8 pixels.
    """
    height, width = _latent_size(height_px, width_px)
    sides = (height * _PX_PER_LATENT, width * _PX_PER_LATENT)
    vae = _without_memory("vae", preset)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.encode(torch.empty(1, 3, *sides))
    return int(counter.get_total_flops())


@functools.cache
def text_flops(preset: ModelPreset) -> int:
    """Returns the operations of encoding one prompt with every text encoder of ``preset``."""
    text_2 = _without_memory("text_encoder_2", preset)
    text_1 = None if preset.text_1 is None else _without_memory("text_encoder", preset)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        ids_BT = torch.zeros(1, preset.text_2.num_positions, dtype=torch.int64)
        encode_text_2(text_2, ids_BT)
        if text_1 is not None:
            encode_text_1(text_1, ids_BT)
    return int(counter.get_total_flops())


def _without_memory(component: str, preset: ModelPreset) -> Any:
    """One network on the meta device. Its library is imported for it, and for it alone."""
    build = network_builder(component)
    with torch.device("meta"):
        return build(preset)


def _latent_size(height_px: int, width_px: int) -> tuple[int, int]:
    if min(height_px, width_px) <= 0 or height_px % _PX_PER_LATENT or width_px % _PX_PER_LATENT:
        raise ConfigError(
            f"size: found {height_px}x{width_px} px, expected multiples of {_PX_PER_LATENT}"
        )
    return height_px // _PX_PER_LATENT, width_px // _PX_PER_LATENT
