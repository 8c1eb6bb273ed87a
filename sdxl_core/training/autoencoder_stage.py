"""The objective of the autoencoder's own stage: decoded pictures that are close, look alike, and
that a discriminator takes for real.

Legend of shape suffixes: B batch, C channels (3 of pictures, 4 of latents), H height, W width.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.training.discriminator import adaptive_weight, adversarial_loss
from sdxl_core.training.perceptual import PerceptualDistance
from sdxl_core.training.sample_draws import normals

if TYPE_CHECKING:  # its library is imported by those who load one
    from sdxl_core.nets.vae import AutoencoderKL


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderObjective:
    """Weights of the parts of the loss. The defaults are those of latent diffusion's f=8
    autoencoder (arXiv:2112.10752); SDXL publishes its batch size (256) and that it averages the
    weights, not these."""

    perceptual_weight: float = 1.0
    kl_weight: float = 1e-6
    adversarial_weight: float = 0.5
    """Length of the adversarial gradient as a share of the other losses' at the last layer; 0 is
    without discriminator."""
    num_warmup_steps: int = 50_000
    """Steps before the discriminator has a say; it begins to learn at the same time."""

    def __post_init__(self) -> None:
        for name in ("perceptual_weight", "kl_weight", "adversarial_weight", "num_warmup_steps"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected 0 or more")

    @property
    def first_adversarial_step(self) -> int:
        """The step, counted from 0, from which on the discriminator has a say; huge: never."""
        return self.num_warmup_steps if self.adversarial_weight > 0 else sys.maxsize

    def is_adversarial(self, step: int) -> bool:
        """Does the discriminator have a say in a step, counted from 0, and learn in it."""
        return step >= self.first_adversarial_step


class AutoencoderPass(nn.Module):
    """Encoder, one draw from the posterior, decoder: one forward pass, which launchers can wrap."""

    def __init__(self, autoencoder: "AutoencoderKL") -> None:
        super().__init__()
        self.autoencoder = autoencoder

    @property
    def last_weight(self) -> Tensor:
        """Weight of the decoder's last layer."""
        weight: Tensor = self.autoencoder.decoder.conv_out.weight
        return weight

    def forward(self, images_BCHW: Tensor, noise_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns decoded pictures, float32, and the posteriors' divergence (B) from a unit normal.

        Args:
            images_BCHW: in [-1, 1], sides multiples of 8 pixels.
            noise_BCHW: standard normal, of the latents' shape.
        """
        posterior = self.autoencoder.encode(images_BCHW.to(self.last_weight.dtype)).latent_dist
        latents_BCHW = posterior.mean + posterior.std * noise_BCHW.to(posterior.mean.dtype)
        decoded_BCHW: Tensor = self.autoencoder.decode(latents_BCHW).sample
        kl_B: Tensor = posterior.kl()
        return decoded_BCHW.float(), kl_B.float()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageLosses:
    """The parts of the loss, 0-d tensors on the device; ``total`` is what is trained, the others
    have no gradient.

    ``adversarial`` and ``adversarial_factor`` are 0 during the warm-up. ``decoded_BCHW`` is for the
    discriminator's step.
    """

    total: Tensor
    reconstruction: Tensor
    perceptual: Tensor
    kl: Tensor
    adversarial: Tensor
    adversarial_factor: Tensor
    decoded_BCHW: Tensor


def autoencoder_stage_loss(
    autoencoder: nn.Module,
    images_BCHW: Tensor,
    seeds: Sequence[int],
    *,
    objective: AutoencoderObjective,
    step: int,
    perceptual: PerceptualDistance,
    last_weight: Tensor,
    discriminator: nn.Module | None = None,
) -> StageLosses:
    """L1 + perceptual distance + KL + what the discriminator says, of one batch.

    All are means over the pictures and, as L1 is per colour value, the KL too is the divergence of
    a picture's latents by the number of its colour values: ``kl_weight`` then means what it means
    in latent diffusion's code.

    Args:
        autoencoder: an ``AutoencoderPass``, or a launcher's wrapper of it.
        images_BCHW: float pictures in [-1, 1]; sides are multiples of 8 pixels.
        seeds: of the samples; the posterior is drawn from them alone.
        objective: the weights.
        step: counted from 0.
        perceptual: on the pictures' device.
        last_weight: ``AutoencoderPass.last_weight``, whole on this worker (not under ZeRO stage 3).
        discriminator: needed once ``objective.is_adversarial(step)``.

    Raises:
        ConfigError: the discriminator is missing.
    """
    noise_BCHW = normals(seeds, latent_shape(images_BCHW), "posterior").to(images_BCHW.device)
    decoded_BCHW, kl_B = autoencoder(images_BCHW, noise_BCHW)
    reconstruction = (decoded_BCHW - images_BCHW.float()).abs().mean()
    distance = perceptual(decoded_BCHW, images_BCHW).mean()
    kl = kl_B.mean() / images_BCHW[0].numel()
    kept = reconstruction + objective.perceptual_weight * distance
    adversarial = factor = torch.zeros((), device=images_BCHW.device)
    total = kept + objective.kl_weight * kl
    if objective.is_adversarial(step):
        if discriminator is None:
            raise ConfigError(
                f"autoencoder stage: found no discriminator at step {step}, expected one from step "
                f"{objective.num_warmup_steps} on; adversarial_weight 0 trains without"
            )
        adversarial = adversarial_loss(discriminator, decoded_BCHW)
        factor = objective.adversarial_weight * adaptive_weight(kept, adversarial, last_weight)
        total = total + factor * adversarial
    return StageLosses(
        total=total,
        reconstruction=reconstruction.detach(),
        perceptual=distance.detach(),
        kl=kl.detach(),
        adversarial=adversarial.detach(),
        adversarial_factor=factor,
        decoded_BCHW=decoded_BCHW.detach(),
    )


def latent_shape(images_BCHW: Tensor) -> tuple[int, int, int]:
    """Returns the shape of one picture's latents: 4 channels, an eighth of the sides."""
    return 4, images_BCHW.shape[2] // 8, images_BCHW.shape[3] // 8
