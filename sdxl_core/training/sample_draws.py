"""What is random about one sample, drawn from that sample's seed alone.

A sample's seed is a function of (run seed, epoch, sample id). Every purpose draws from a seed of
its own that is hashed from it, so a sample is trained with the same noise, timestep and dropout
whatever its neighbours, the number of workers or the other options are. Numbers are drawn on the
CPU, so every device gets the same.

Legend of shape suffixes: B batch, C latent channels, H latent height, W latent width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.seeds import row_seed
from sdxl_core.diffusion.schedules import NUM_TRAIN_TIMESTEPS
from sdxl_core.nets.autoencoder import sample_latents
from sdxl_core.training.objective import OFFSET_NOISE, NoiseDraw
from sdxl_core.training.transfer import to_device

OffsetKind = Literal["per-channel", "scalar"]
"""Whether offset noise is one constant per sample and channel, or one per sample (the code of
SDXL's release)."""

Purpose = Literal[
    "noise",
    "offset",
    "timestep",
    "posterior",
    "drop text",
    "drop states 1",
    "drop states 2",
    "drop pooled",
    "drop original size",
    "drop crop",
    "drop last numbers",
]
"""What a number is drawn for. A changed word is another draw."""


def uniform(seed: int, purpose: Purpose) -> float:
    """Returns a number in [0, 1), a multiple of 2**-53."""
    return (row_seed(seed, purpose) >> 10) / 2**53


def normals(seeds: Sequence[int], shape: Sequence[int], purpose: Purpose) -> Tensor:
    """Returns standard normal numbers of shape (B, *shape), float32 on the CPU.

    torch's CPU generator looks at 32 bits of a seed: of 100,000 samples one pair is likely to share
    its noise, which does no harm.
    """
    drawn = torch.empty(len(seeds), *shape)
    for place, seed in zip(drawn, seeds, strict=True):
        generator = torch.Generator().manual_seed(row_seed(seed, purpose))
        torch.randn(tuple(shape), generator=generator, out=place)
    return drawn


def draw_for_samples(
    seeds: Sequence[int],
    latents_shape: tuple[int, int, int],
    *,
    timesteps: tuple[int, int] = (0, NUM_TRAIN_TIMESTEPS),
    offset_noise: float = OFFSET_NOISE,
    offset: OffsetKind = "per-channel",
) -> NoiseDraw:
    """Draws noise and a uniform timestep for each sample, on the CPU.

    Args:
        seeds: of the samples.
        latents_shape: (C, H, W), the bucket's.
        timesteps: half-open range within 0 to 1000; the refiner of the two-stage pipeline knows
            ``objective.REFINER_TIMESTEPS``.
        offset_noise: standard deviation of an extra constant, which lets the model move the mean of
            a picture; SDXL's multi-aspect stage uses 0.05, 0 is off.
        offset: what the constant is constant over.

    Raises:
        ConfigError: the range of timesteps is empty or reaches beyond the schedule.
    """
    first, end = check_timesteps(timesteps)
    noise_BCHW = normals(seeds, latents_shape, "noise")
    if offset_noise:
        num_constants = latents_shape[0] if offset == "per-channel" else 1
        noise_BCHW += offset_noise * normals(seeds, (num_constants, 1, 1), "offset")
    drawn = [first + row_seed(seed, "timestep") % (end - first) for seed in seeds]
    return NoiseDraw(noise_BCHW=noise_BCHW, timestep_B=torch.tensor(drawn, dtype=torch.int64))


def posterior_latents(
    moments_BCHW: Tensor, seeds: Sequence[int], *, scaling_factor: float
) -> Tensor:
    """Draws scaled float32 latents from the distributions that the autoencoder gave.

    Args:
        moments_BCHW: mean and log-variance of the latent channels, one after the other, on any
            device.
        seeds: of the samples.
        scaling_factor: ``preset.vae.scaling_factor``.
    """
    channels, height, width = moments_BCHW.shape[1] // 2, *moments_BCHW.shape[2:]
    drawn_BCHW = normals(seeds, (channels, height, width), "posterior")
    noise_BCHW = to_device(drawn_BCHW, moments_BCHW.device)
    return sample_latents(moments_BCHW, noise_BCHW, scaling_factor=scaling_factor)


def check_timesteps(timesteps: tuple[int, int]) -> tuple[int, int]:
    """Returns the half-open range as it is.

    Raises:
        ConfigError: it is empty or reaches beyond the schedule.
    """
    first, end = timesteps
    if not 0 <= first < end <= NUM_TRAIN_TIMESTEPS:
        raise ConfigError(
            f"timesteps: found {first} to {end}, expected a first one and an end with "
            f"0 <= first < end <= {NUM_TRAIN_TIMESTEPS}; all of them is 0 to {NUM_TRAIN_TIMESTEPS}"
        )
    return timesteps
