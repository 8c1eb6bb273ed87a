"""Latents of one row to its picture, and what to say when there is none.

The last function before the picture's bytes: whoever makes images, in one process or on a cluster,
calls this one, so that they get the same ones.
"""

# Shapes: C=4 latent channels, H W latent size in latents_CHW and pixels in rgb_HWC, where C=3.

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdxl_core.contract.errors import RowError
from sdxl_core.contract.reasons import Reason
from sdxl_core.diffusion.engine import OutOfMemoryRow
from sdxl_core.diffusion.tasks import DenoiseResult
from sdxl_core.nets.autoencoder import decode_latents
from sdxl_core.nets.model import SdxlModel
from sdxl_core.nets.presets import ModelKind


@torch.inference_mode()
def decode_row(
    model: SdxlModel, latents_CHW: Tensor, *, device: torch.device | str
) -> tuple[npt.NDArray[np.uint8], bool]:
    """Decodes one picture. One a call: its bits then depend on no other.

    Args:
        model: Its autoencoder decodes; for refined rows too, the base's.
        latents_CHW: Finished latents, float32, on any device.
        device: Where the autoencoder is.

    Returns:
        rgb_HWC: uint8, rounded as diffusers rounds: to the nearest, ties to even.
        is_finite: False if a latent or the decoded picture was not finite; the picture is not to
            be kept then.
    """
    rgb_BHWC, finite_B = decode_latents(model, latents_CHW[None].to(device))
    rgb_HWC: npt.NDArray[np.uint8] = (
        (rgb_BHWC[0] * 255).round().to(torch.uint8).contiguous().cpu().numpy()
    )
    return rgb_HWC, bool(finite_B[0])


def denoise_error(
    outcome: DenoiseResult | OutOfMemoryRow, *, kind: ModelKind, dtype: torch.dtype
) -> RowError | None:
    """What is wrong with a row that comes out of the engine; None if nothing is.

    Args:
        outcome: Of the engine.
        kind: The network that ran it.
        dtype: That network's precision.
    """
    if isinstance(outcome, OutOfMemoryRow):
        return RowError(Reason.OUT_OF_MEMORY, outcome.detail)
    if outcome.is_finite:
        return None
    return RowError(
        Reason.NON_FINITE_IMAGE,
        f"the {kind} produced NaN or infinity in {_name(dtype)}; try float32, and look at the "
        "prompt, the guidance scale and the weights",
    )


def decode_error(model: SdxlModel) -> RowError:
    """What to say of a picture that ``decode_row`` found not finite."""
    return RowError(
        Reason.NON_FINITE_IMAGE,
        f"the autoencoder produced NaN or infinity in {_name(model.vae.dtype)}; try it in float32",
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
