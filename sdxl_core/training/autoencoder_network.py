"""Autoencoder and discriminator as one network to train, and what a batch of pictures says of both.

Their losses share no gradient: the autoencoder's goes through a frozen discriminator, the
discriminator's stops at the decoded pictures. So one backward pass and one optimizer step serve
both, from the weights that both had before it; a step that is skipped is skipped for both.

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.training.autoencoder_stage import (
    AutoencoderObjective,
    AutoencoderPass,
    autoencoder_stage_loss,
)
from sdxl_core.training.discriminator import PatchDiscriminator, discriminator_loss
from sdxl_core.training.perceptual import PerceptualDistance, RandomFeatures, load_lpips
from sdxl_core.training.picture_metrics import psnr, ssim
from sdxl_core.training.seeded_objective import SampleLosses

if TYPE_CHECKING:  # their libraries are imported by those who load one
    from sdxl_core.nets.inception import InceptionFeatures
    from sdxl_core.nets.vae import AutoencoderKL

AUTOENCODER_PREFIX = "autoencoder.autoencoder."
"""What the names of the autoencoder's parameters begin with in an ``AdversarialPair``."""

DISCRIMINATOR_PREFIX = "discriminator."
"""What the names of the discriminator's parameters begin with there."""

LOSS_PARTS = (
    *("reconstruction", "perceptual", "kl", "adversarial", "adversarial_factor", "discriminator"),
    *("psnr_db", "ssim"),
)
"""Names of ``SampleLosses.parts``; the last two are of the decoded pictures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderSettings:
    """What is trained in the autoencoder's stage, beside the model's sizes.

    The defaults are those of latent diffusion's code.
    """

    objective: AutoencoderObjective = dataclasses.field(default_factory=AutoencoderObjective)
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    lpips: tuple[str, str] | None = None
    """Files of VGG-16 and of LPIPS's channel weights; None: features of a fixed random network."""
    inception: str = ""
    """File of FID's Inception network, for rFID; "": it is not measured."""

    def perceptual(self) -> PerceptualDistance:
        """Returns the perceptual distance.

        Raises:
            WeightsError: a file cannot be read.
        """
        if self.lpips is None:
            return PerceptualDistance(RandomFeatures())
        vgg_path, channels_path = self.lpips
        return load_lpips(Path(vgg_path), Path(channels_path))

    def picture_features(self) -> "InceptionFeatures | None":
        """Returns what rFID looks through, see ``InceptionFeatures``; None if it is not measured.

        Raises:
            WeightsError: the file cannot be read.
            ConfigError: torch-fidelity is not installed here.
        """
        if not self.inception:
            return None
        try:
            from sdxl_core.nets.inception import load_inception
        except ImportError as error:
            raise ConfigError(f"vae.inception: {error}; pip install 'sdxl-ray[train]'") from error
        return load_inception(Path(self.inception))


class AdversarialPair(nn.Module):
    """An autoencoder and the discriminator that learns beside it.

    Args:
        autoencoder: to be trained.
        settings: of the discriminator.
        seed: of the discriminator's weights.
    """

    def __init__(
        self, autoencoder: "AutoencoderKL", settings: AutoencoderSettings, *, seed: int
    ) -> None:
        super().__init__()
        self.autoencoder = AutoencoderPass(autoencoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.discriminator = PatchDiscriminator(
                num_channels=settings.discriminator_channels,
                num_layers=settings.discriminator_layers,
            )

    def forward(
        self,
        images_BCHW: Tensor,
        seeds: Sequence[int],
        *,
        objective: AutoencoderObjective,
        step: int,
        perceptual: PerceptualDistance,
    ) -> dict[str, Tensor]:
        """Returns ``total``, a scalar with gradient; ``kept``, the autoencoder's loss without the
        discriminator's say; ``decoded``, pictures (B, C, H, W) in [-1, 1]; and ``LOSS_PARTS``, each
        (B). Arguments as in ``losses_of_pictures``.

        All is done in here because a launcher may watch the backward passes through what it gets
        from a network, and the weight between the losses takes two of its own.
        """
        found = autoencoder_stage_loss(
            self.autoencoder,
            images_BCHW,
            seeds,
            objective=objective,
            step=step,
            perceptual=perceptual,
            last_weight=self.autoencoder.last_weight,
            discriminator=self.discriminator,
        )
        own = torch.zeros_like(found.total)
        if objective.is_adversarial(step):
            own = discriminator_loss(self.discriminator, images_BCHW, found.decoded_BCHW)
        kept = (
            found.reconstruction
            + objective.perceptual_weight * found.perceptual
            + objective.kl_weight * found.kl
        )
        pictures_BCHW = found.decoded_BCHW.clamp(-1, 1)
        parts = (
            *(found.reconstruction, found.perceptual, found.kl),
            *(found.adversarial, found.adversarial_factor, own),
            *(psnr(pictures_BCHW, images_BCHW), ssim(pictures_BCHW, images_BCHW)),
        )
        size = len(images_BCHW)
        told = {
            name: part.detach().float().expand(size)
            for name, part in zip(LOSS_PARTS, parts, strict=True)
        }
        total = found.total + own
        return {"total": total, "kept": kept.detach(), "decoded": pictures_BCHW, **told}


def autoencoder_parameters(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns those of an ``AdversarialPair`` that are the autoencoder's, by their names in it."""
    return {
        name.removeprefix(AUTOENCODER_PREFIX): tensor
        for name, tensor in parameters.items()
        if name.startswith(AUTOENCODER_PREFIX)
    }


def losses_of_pictures(
    pair: nn.Module,
    images_BCHW: Tensor,
    seeds: Sequence[int],
    *,
    objective: AutoencoderObjective,
    step: int,
    perceptual: PerceptualDistance,
) -> SampleLosses:
    """What one batch says of autoencoder and discriminator.

    Args:
        pair: an ``AdversarialPair``, whole on this worker (not under ZeRO stage 3), or a launcher's
            wrapper of it.
        images_BCHW: float pictures in [-1, 1]; sides are multiples of 8 pixels.
        seeds: of the samples; the posterior is drawn from them alone.
        objective: the weights.
        step: counted from 0.
        perceptual: on the pictures' device.

    Returns:
        ``loss_B`` is the sum of both losses, the same for all samples of the batch; ``error_B`` is
        the autoencoder's without the discriminator's say, likewise; ``parts`` are ``LOSS_PARTS``;
        ``decoded_BCHW`` are within [-1, 1].
    """
    found = pair(images_BCHW, seeds, objective=objective, step=step, perceptual=perceptual)
    size = len(images_BCHW)
    return SampleLosses(
        loss_B=found["total"].expand(size),
        error_B=found["kept"].expand(size),
        timestep_B=torch.zeros(size, dtype=torch.int64, device=images_BCHW.device),
        parts={name: found[name] for name in LOSS_PARTS},
        decoded_BCHW=found["decoded"],
    )


def pictures_of(images_BHWC: Any, device: torch.device | str) -> Tensor:
    """Returns uint8 pictures as float32 (B, 3, H, W) in [-1, 1] on the device."""
    # A copy: arrays out of the object store cannot be written to, which torch warns of.
    rgb_BCHW = torch.tensor(images_BHWC).to(device, non_blocking=True).permute(0, 3, 1, 2)
    return rgb_BCHW.float() / 127.5 - 1


def bytes_of(images_BCHW: Tensor) -> Tensor:
    """Returns pictures in [-1, 1] as uint8 (B, 3, H, W); the inverse of ``pictures_of``."""
    return ((images_BCHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def refuse_small_pictures(sizes: Sequence[tuple[int, int]], *, num_layers: int) -> None:
    """Checks that the discriminator and SSIM have something to look at.

    Args:
        sizes: (height, width) of the buckets, pixels.
        num_layers: of the discriminator.

    Raises:
        ConfigError: a side is too short.
    """
    # Each layer but the last halves; the last two take 4 px and give 1 px less.
    least = max(16, 3 * 2**num_layers)
    small = [f"{height}x{width}" for height, width in sizes if min(height, width) < least]
    if small:
        raise ConfigError(
            f"stage vae: found buckets of {', '.join(small[:4])} px, expected sides of at least "
            f"{least} px for a discriminator of {num_layers} layers"
        )
