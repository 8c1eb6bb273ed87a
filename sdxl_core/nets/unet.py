"""The UNet of a preset: diffusers', with random weights.

Importing this imports diffusers.
"""

from sdxl_core.nets.presets import ModelPreset
from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

declare_missing_torchvision_ops()

from diffusers.models.attention_processor import AttnProcessor  # noqa: E402
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: E402

__all__ = ["AttnProcessor", "UNet2DConditionModel", "build_unet"]


def build_unet(preset: ModelPreset) -> UNet2DConditionModel:
    """Returns the UNet of ``preset`` in evaluation mode."""
    return UNet2DConditionModel(**preset.unet.diffusers_config()).eval()
