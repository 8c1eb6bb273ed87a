"""Finds the builders of networks by name, importing the library of each only when it is asked for.

The libraries take seconds to import, and most processes of a job run one network. The names are
those of the folders in the diffusers layout: ``text_encoder``, ``text_encoder_2``, ``unet``,
``vae``.
"""

from collections.abc import Callable, Collection

from torch import nn

from sdxl_core.nets.presets import ModelPreset

Builder = Callable[[ModelPreset], nn.Module]
"""Returns a network of a preset in evaluation mode, on the device that the context gives."""


def network_builder(component: str) -> Builder:
    """Imports what one network needs and returns its builder.

    Call it outside of ``with torch.device(...)``: what a library creates while it is imported is
    not meant for that device.
    """
    if component == "unet":
        from sdxl_core.nets.unet import build_unet

        return build_unet
    if component == "vae":
        from sdxl_core.nets.vae import build_vae

        return build_vae
    from sdxl_core.nets.text_encoders import build_text_1, build_text_2

    return build_text_1 if component == "text_encoder" else build_text_2


def network_builders(
    preset: ModelPreset, components: Collection[str] | None = None
) -> dict[str, Builder]:
    """Returns the builders of the networks that ``preset`` has; see ``network_builder``.

    Args:
        preset: a refiner has no ``text_encoder``.
        components: only these; None means all.
    """
    names = ["text_encoder", "text_encoder_2", "unet", "vae"]
    if preset.text_1 is None:
        names.remove("text_encoder")
    return {
        name: network_builder(name) for name in names if components is None or name in components
    }


def network_constructor(component: str) -> Callable[..., nn.Module]:
    """Imports what ``unet`` or ``vae`` needs and returns diffusers' class, for its parameters."""
    if component == "unet":
        from sdxl_core.nets.unet import UNet2DConditionModel

        return UNet2DConditionModel  # type: ignore[no-any-return]
    from sdxl_core.nets.vae import AutoencoderKL

    return AutoencoderKL  # type: ignore[no-any-return]
