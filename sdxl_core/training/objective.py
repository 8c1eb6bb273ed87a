"""SDXL's training objective: predict the noise that was added to latents (or the velocity), given
caption and micro-conditioning.

All functions are pure; randomness comes in as tensors or as a generator, so any launcher can use
them.

Legend of shape suffixes: B batch, C latent channels, H latent height, W latent width, T token
positions, D width of the text states, P width of the pooled text vector, N number of
micro-conditioning numbers (6 base, 5 refiner).
"""

import dataclasses

import torch
from torch import Tensor, nn

from sdxl_core.diffusion.schedules import NUM_TRAIN_TIMESTEPS, scaled_linear_alphas_cumprod
from sdxl_core.nets.model import PredictionType

OFFSET_NOISE = 0.05
REFINER_TIMESTEPS = (0, 200)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionBatch:
    """One batch of one bucket.

    ``latents_BCHW`` are scaled by the autoencoder's factor. ``time_ids_BN`` is float32: for the
    base (original height, original width, crop top, crop left, target height, target width) in
    pixels, for the refiner (original height, original width, crop top, crop left, aesthetic score).
    """

    latents_BCHW: Tensor
    states_BTD: Tensor
    pooled_BP: Tensor
    time_ids_BN: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseDraw:
    """What is random in the loss of one batch: noise and timestep (int64) of every sample."""

    noise_BCHW: Tensor
    timestep_B: Tensor


def draw_noise(
    latents_BCHW: Tensor,
    *,
    generator: torch.Generator | None = None,
    timesteps: tuple[int, int] = (0, NUM_TRAIN_TIMESTEPS),
    offset_noise: float = OFFSET_NOISE,
) -> NoiseDraw:
    """Draws noise and uniform timesteps for a batch.

    Args:
        latents_BCHW: gives shape and device; drawn on the CPU so that every device gets the same.
        generator: CPU generator; None is torch's global one.
        timesteps: half-open range; the refiner of the two-stage pipeline knows
            ``REFINER_TIMESTEPS``.
        offset_noise: standard deviation of an extra constant per sample and channel, which lets the
            model move the mean of a picture (SDXL uses 0.05).
    """
    batch_size, channels = latents_BCHW.shape[:2]
    noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator)
    offset_BC11 = torch.randn(batch_size, channels, 1, 1, generator=generator)
    timestep_B = torch.randint(*timesteps, (batch_size,), generator=generator)
    device = latents_BCHW.device
    return NoiseDraw(
        noise_BCHW=(noise_BCHW + offset_noise * offset_BC11).to(device),
        timestep_B=timestep_B.to(device),
    )


def _kept_shares(draw: NoiseDraw, kept_T: Tensor | None) -> Tensor:
    """Returns the schedule's ``a`` at each sample's timestep, of shape (B, 1, 1, 1)."""
    if kept_T is None:
        device = draw.timestep_B.device
        kept_T = torch.tensor(scaled_linear_alphas_cumprod(), dtype=torch.float32, device=device)
    return kept_T[draw.timestep_B].reshape(-1, 1, 1, 1)


def add_noise(latents_BCHW: Tensor, draw: NoiseDraw, kept_T: Tensor | None = None) -> Tensor:
    """Returns ``sqrt(a) * latents + sqrt(1 - a) * noise`` with ``a`` the schedule's share at each
    timestep.

    Args:
        latents_BCHW: clean, float32.
        draw: noise and timesteps.
        kept_T: the share ``a`` of each of the 1000 timesteps, float32, on the latents' device (see
            ``noise_levels.kept_shares``); None is SDXL's, copied to the device on every call.
    """
    kept_B111 = _kept_shares(draw, kept_T)
    return kept_B111.sqrt() * latents_BCHW + (1 - kept_B111).sqrt() * draw.noise_BCHW


def draw_dropped_captions(
    batch_size: int, *, share: float, generator: torch.Generator | None = None
) -> Tensor:
    """Returns a bool mask (B): which samples are trained without their caption."""
    return torch.rand(batch_size, generator=generator) < share


def drop_captions(
    batch: DiffusionBatch, dropped_B: Tensor, empty: tuple[Tensor, Tensor] | None
) -> DiffusionBatch:
    """Replaces text states and pooled vector of the dropped samples.

    Args:
        batch: the batch.
        dropped_B: bool mask.
        empty: (states_TD, pooled_P) of the empty prompt, as for the refiner; None stands for zeros,
            as for the base, whose pipeline zeroes the embeddings of an empty negative prompt.
    """
    if empty is None:
        empty_TD, empty_P = (
            torch.zeros_like(batch.states_BTD[0]),
            torch.zeros_like(batch.pooled_BP[0]),
        )
    else:
        empty_TD, empty_P = empty
    dropped_B = dropped_B.to(batch.states_BTD.device)
    return dataclasses.replace(
        batch,
        states_BTD=torch.where(dropped_B[:, None, None], empty_TD, batch.states_BTD),
        pooled_BP=torch.where(dropped_B[:, None], empty_P, batch.pooled_BP),
    )


def predict(
    unet: nn.Module,
    batch: DiffusionBatch,
    noisy_BCHW: Tensor,
    timestep_B: Tensor,
    *,
    network_dtype: torch.dtype | None = None,
) -> Tensor:
    """Runs diffusers' ``UNet2DConditionModel`` on a batch.

    Args:
        unet: the network, or a launcher's wrapper of it.
        batch: text and numbers.
        noisy_BCHW: its noisy latents.
        timestep_B: int64.
        network_dtype: latents and text are given in this dtype, that of the network's weights; None
            gives them as they are. The numbers stay float32: in bfloat16 a side of 1333 px would be
            1336.
    """
    predicted_BCHW: Tensor = unet(
        noisy_BCHW.to(dtype=network_dtype),
        timestep_B,
        encoder_hidden_states=batch.states_BTD.to(dtype=network_dtype),
        added_cond_kwargs={
            "text_embeds": batch.pooled_BP.to(dtype=network_dtype),
            "time_ids": batch.time_ids_BN,
        },
        return_dict=False,
    )[0]
    return predicted_BCHW


def prediction_target(
    batch: DiffusionBatch,
    draw: NoiseDraw,
    prediction_type: PredictionType,
    kept_T: Tensor | None = None,
) -> Tensor:
    """Returns what the network should say: the noise, or the velocity
    ``sqrt(a) * noise - sqrt(1 - a) * latents`` (arXiv:2202.00512, appendix D)."""
    if prediction_type == "epsilon":
        return draw.noise_BCHW
    kept_B111 = _kept_shares(draw, kept_T)
    return kept_B111.sqrt() * draw.noise_BCHW - (1 - kept_B111).sqrt() * batch.latents_BCHW


def sample_errors(
    unet: nn.Module,
    batch: DiffusionBatch,
    draw: NoiseDraw,
    *,
    prediction_type: PredictionType = "epsilon",
    kept_T: Tensor | None = None,
    network_dtype: torch.dtype | None = None,
) -> Tensor:
    """Mean squared error of each sample's prediction, float32 of shape (B); the host waits for
    nothing.

    Args:
        unet: the network.
        batch: a batch whose captions are already dropped.
        draw: noise and timesteps.
        prediction_type: what the network says, see ``prediction_target``.
        kept_T: see ``add_noise``.
        network_dtype: see ``predict``.
    """
    noisy_BCHW = add_noise(batch.latents_BCHW, draw, kept_T)
    predicted_BCHW = predict(unet, batch, noisy_BCHW, draw.timestep_B, network_dtype=network_dtype)
    target_BCHW = prediction_target(batch, draw, prediction_type, kept_T)
    return (predicted_BCHW.float() - target_BCHW.float()).square().flatten(1).mean(1)


def diffusion_loss(
    unet: nn.Module,
    batch: DiffusionBatch,
    draw: NoiseDraw,
    *,
    prediction_type: PredictionType = "epsilon",
    weight_T: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the prediction, a scalar.

    Args:
        unet: the network.
        batch: a batch whose captions are already dropped.
        draw: noise and timesteps.
        prediction_type: what the network says, see ``prediction_target``.
        weight_T: weight of each of the 1000 timesteps; None is SDXL's objective, all equal.
    """
    error_B = sample_errors(unet, batch, draw, prediction_type=prediction_type)
    if weight_T is not None:
        error_B = error_B * weight_T.to(error_B.device)[draw.timestep_B]
    return error_B.mean()
