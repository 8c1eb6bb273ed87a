"""The objective of the autoencoder: how far a decoded picture is from its original, and how free
its latents are.

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from sdxl_core.nets.build import AutoencoderKL

# Local colours times this have a spread of about one over the scenes.
_COLOUR_SCALE = 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderLoss:
    """The parts of the loss, each a scalar mean; ``total`` is their weighted sum."""

    total: Tensor
    reconstruction: Tensor
    edges: Tensor
    kl: Tensor
    local_colour: Tensor


def edge_difference(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Mean absolute difference of the pictures' horizontal and vertical neighbour differences.

    L1 alone is content with soft outlines; this term is what makes the shapes of flat pictures
    crisp.
    """
    error_BCHW = first_BCHW - second_BCHW
    return torch.diff(error_BCHW, dim=-1).abs().mean() + torch.diff(error_BCHW, dim=-2).abs().mean()


def autoencoder_loss(
    autoencoder: AutoencoderKL,
    images_BCHW: Tensor,
    *,
    edge_weight: float = 1.0,
    kl_weight: float = 1e-4,
    local_colour_weight: float = 0.5,
) -> AutoencoderLoss:
    """L1 + edges + KL + local colour of one batch.

    Group norms erase the absolute colour of flat pictures, and training then sits on a plateau
    where only light and dark come through. The local colour term ends that: it asks the first three
    latent channels to be the mean colour of each 8 x 8 patch. Once colours come through it is in
    the way of the outlines, so a training lets its weight fall to 0.

    Args:
        autoencoder: diffusers' ``AutoencoderKL``.
        images_BCHW: float pictures in [-1, 1]; sides are multiples of 8 pixels.
        edge_weight: weight of ``edge_difference``.
        kl_weight: weight of the KL divergence from a unit normal, averaged over latent numbers.
        local_colour_weight: weight of the local colour term.

    Returns:
        The loss and its parts; the posterior is sampled once with torch's global generator.
    """
    posterior = autoencoder.encode(images_BCHW).latent_dist
    decoded_BCHW = autoencoder.decode(posterior.sample()).sample.float()
    reconstruction = (decoded_BCHW - images_BCHW).abs().mean()
    edges = edge_difference(decoded_BCHW, images_BCHW)
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    patches_BCHW = _COLOUR_SCALE * F.avg_pool2d(images_BCHW, 8)
    local_colour = (posterior.mean[:, :3].float() - patches_BCHW).abs().mean()
    total = (
        reconstruction + edge_weight * edges + kl_weight * kl + local_colour_weight * local_colour
    )
    return AutoencoderLoss(
        total=total, reconstruction=reconstruction, edges=edges, kl=kl, local_colour=local_colour
    )


@torch.no_grad()
def standardise_latents(
    autoencoder: AutoencoderKL,
    mean_C: Tensor,
    std_C: Tensor,
    *,
    scaling_factor: float,
    spread: float = 1.0,
) -> None:
    """Gives every latent channel mean 0 and standard deviation ``spread / scaling_factor``, exactly
    undone in the decoder.

    A shift and a scale per channel are folded into the two 1 x 1 convolutions around the latents,
    so pictures do not change and ``scaling_factor * latents`` has the standard deviation
    ``spread``.

    Args:
        autoencoder: diffusers' ``AutoencoderKL``, changed in place.
        mean_C: mean of each latent channel as measured over pictures.
        std_C: standard deviation of each latent channel.
        scaling_factor: the factor that the configuration names.
        spread: 1 suits photographs. Flat pictures of few latent cells stay visible in stronger
            noise; a smaller spread lets the noise of the fixed schedule hide them.
    """
    channels = len(mean_C)
    scale_C = spread / (scaling_factor * std_C)
    quant, post_quant = autoencoder.quant_conv, autoencoder.post_quant_conv
    quant.weight[:channels] *= scale_C[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean_C) * scale_C
    quant.bias[channels:] += 2 * scale_C.log()
    post_quant.bias += post_quant.weight[:, :, 0, 0] @ mean_C
    post_quant.weight /= scale_C[None, :, None, None]
