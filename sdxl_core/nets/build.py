"""All networks of a preset, with random weights, for those who want them all: training and tests.

The networks are those of diffusers (UNet, autoencoder), transformers (text encoder 1) and open_clip
(text encoder 2), as in the released models; nothing is subclassed. They come up on the device that
the caller's context gives, so ``with torch.device("meta")`` builds a full-size model in no memory.

Importing this imports all three libraries, seconds of work. A process that runs one network takes
its builder from ``components.py`` and waits for that network's library only.
"""

from torch import nn

from sdxl_core.nets.presets import ModelPreset
from sdxl_core.nets.text_encoders import (
    CLIPTextModel,
    TextTransformer,
    build_text_1,
    build_text_2,
    clip_text_config,
)
from sdxl_core.nets.unet import AttnProcessor, UNet2DConditionModel, build_unet
from sdxl_core.nets.vae import AutoencoderKL, build_vae

__all__ = [
    "AttnProcessor",
    "AutoencoderKL",
    "CLIPTextModel",
    "TextTransformer",
    "UNet2DConditionModel",
    "build_networks",
    "build_text_1",
    "build_text_2",
    "build_unet",
    "build_vae",
    "clip_text_config",
]


def build_networks(preset: ModelPreset) -> dict[str, nn.Module]:
    """Returns all networks of ``preset`` by their folder names in the diffusers layout.

    The keys are ``text_encoder`` (absent for a refiner), ``text_encoder_2``, ``unet`` and ``vae``.
    """
    networks: dict[str, nn.Module] = {}
    if preset.text_1 is not None:
        networks["text_encoder"] = build_text_1(preset)
    networks["text_encoder_2"] = build_text_2(preset)
    networks["unet"] = build_unet(preset)
    networks["vae"] = build_vae(preset)
    return networks
