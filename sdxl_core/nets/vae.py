"""The autoencoder of a preset: diffusers', with random weights.

Importing this imports diffusers.
"""

from sdxl_core.nets.presets import ModelPreset
from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

declare_missing_torchvision_ops()

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # noqa: E402

__all__ = ["AutoencoderKL", "build_vae"]


def build_vae(preset: ModelPreset) -> AutoencoderKL:
    """Returns the autoencoder of ``preset`` (factor 8, 4 latent channels) in evaluation mode."""
    return AutoencoderKL(**preset.vae.diffusers_config()).eval()
