"""Pictures to latents and back, in the precision that the autoencoder was loaded in.

Latents here are scaled: the autoencoder's own latents times ``scaling_factor``, the space in which
the UNet works. Shape suffixes: B batch, C channels (4 in latents, 8 in moments, 3 in pictures), H
height, W width; latents are 8 times smaller than pictures.
"""

from typing import TYPE_CHECKING

import torch

from sdxl_core.nets.model import SdxlModel

if TYPE_CHECKING:
    from sdxl_core.nets.vae import AutoencoderKL

# Bounds of the log-variance in the original code; without them an untrained encoder overflows exp.
_MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE = -30.0, 20.0


def decode_latents(
    model: SdxlModel, latents_BCHW: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decodes finished latents.

    Args:
        model: its autoencoder decodes, in its own precision.
        latents_BCHW: scaled latents of any float dtype, on the autoencoder's device.

    Returns:
        rgb_BHWC: float32 in [0, 1], every number finite: what was not is 0.
        finite_B: bool; False where a latent or the decoded picture had a number that is not finite,
            so that the row can be reported instead of stored as a black picture.
    """
    vae = model.vae
    unscaled_BCHW = latents_BCHW.float() / model.preset.vae.scaling_factor
    decoded_BCHW = vae.decode(unscaled_BCHW.to(vae.dtype), return_dict=False)[0].float()
    finite_B = _is_finite_B(latents_BCHW) & _is_finite_B(decoded_BCHW)
    rgb_BCHW = (decoded_BCHW / 2 + 0.5).clamp(0, 1).nan_to_num(nan=0.0)
    return rgb_BCHW.permute(0, 2, 3, 1), finite_B


def encode_image(vae: "AutoencoderKL", image_BCHW: torch.Tensor) -> torch.Tensor:
    """Encodes pictures to the distribution of their latents.

    Args:
        vae: the autoencoder of a model.
        image_BCHW: float pictures in [-1, 1]; sides are multiples of 8 pixels.

    Returns:
        moments_BCHW: float32, mean (4 channels) and log-variance (4), clamped as in the original
            code, before scaling.
    """
    distribution = vae.encode(image_BCHW.to(vae.dtype), return_dict=False)[0]
    moments_BCHW: torch.Tensor = distribution.parameters.float()
    mean_BCHW, log_variance_BCHW = moments_BCHW.chunk(2, dim=1)
    clamped_BCHW = log_variance_BCHW.clamp(_MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE)
    return torch.cat([mean_BCHW, clamped_BCHW], dim=1)


def sample_latents(
    moments_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, *, scaling_factor: float
) -> torch.Tensor:
    """Draws scaled latents from the distribution that ``encode_image`` returns.

    Args:
        moments_BCHW: mean and log-variance, 8 channels.
        noise_BCHW: standard normal noise, 4 channels.
        scaling_factor: ``preset.vae.scaling_factor``; 0.13025 in the released models.

    Returns:
        latents_BCHW: float32, 4 channels.
    """
    mean_BCHW, log_variance_BCHW = moments_BCHW.float().chunk(2, dim=1)
    return (mean_BCHW + (0.5 * log_variance_BCHW).exp() * noise_BCHW) * scaling_factor


def _is_finite_B(values_BCHW: torch.Tensor) -> torch.Tensor:
    return torch.isfinite(values_BCHW).all(dim=(1, 2, 3))
