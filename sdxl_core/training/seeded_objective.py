"""The objective of a diffusion stage in one place: its settings, and the loss of every sample as a
function of the weights, the sample and the sample's seed.

Legend of shape suffixes: B batch, T the 1000 timesteps.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.diffusion.schedules import NUM_TRAIN_TIMESTEPS
from sdxl_core.nets.model import PredictionType
from sdxl_core.training.conditions import ConditionDropout, draw_dropped, drop_conditions
from sdxl_core.training.noise_levels import check_learnable, kept_shares, min_snr_weights
from sdxl_core.training.objective import DiffusionBatch, NoiseDraw, sample_errors
from sdxl_core.training.sample_draws import OffsetKind, check_timesteps, draw_for_samples
from sdxl_core.training.transfer import to_device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a UNet is trained for. The defaults are SDXL's first stages (arXiv:2307.01952).

    The multi-aspect stage has ``offset_noise=0.05``; a refiner has
    ``timesteps=objective.REFINER_TIMESTEPS``.
    """

    prediction_type: PredictionType = "epsilon"
    timesteps: tuple[int, int] = (0, NUM_TRAIN_TIMESTEPS)
    """Half-open range."""
    offset_noise: float = 0.0
    """Standard deviation of an extra constant in the noise; 0 is off."""
    offset: OffsetKind = "per-channel"
    min_snr_gamma: float | None = None
    """See ``noise_levels.min_snr_weights``; None gives every timestep the same weight."""
    zero_terminal_snr: bool = False
    """See ``noise_levels.kept_shares``; with ``v_prediction`` only."""
    dropout: ConditionDropout = dataclasses.field(default_factory=ConditionDropout)

    def __post_init__(self) -> None:
        check_timesteps(self.timesteps)
        check_learnable(self.prediction_type, zero_terminal_snr=self.zero_terminal_snr)
        if not self.offset_noise >= 0:
            raise ConfigError(
                f"offset_noise: found {self.offset_noise}, expected 0 (off) or more; SDXL: 0.05"
            )
        if self.min_snr_gamma is not None:
            self.tables()

    def tables(self, device: torch.device | str = "cpu") -> "ObjectiveTables":
        """Returns what is looked up by timestep. Made once: a copy to a device makes the host wait.

        Raises:
            ConfigError: ``min_snr_gamma`` is not positive.
        """
        kept_T = kept_shares(zero_terminal_snr=self.zero_terminal_snr)
        weight_T = torch.ones_like(kept_T)
        if self.min_snr_gamma is not None:
            weight_T = min_snr_weights(
                kept_T, prediction_type=self.prediction_type, gamma=self.min_snr_gamma
            )
        return ObjectiveTables(kept_T=kept_T.to(device), weight_T=weight_T.to(device))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveTables:
    """Share of the data that is left at each timestep and weight of its error, float32[T]."""

    kept_T: Tensor
    weight_T: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleLosses:
    """What one batch says of the network, on the batch's device.

    ``loss_B`` (float32) is what is trained, its mean over the global batch; ``error_B`` is the same
    without weights and without gradient, for telemetry; ``timestep_B`` is int64. ``parts`` are
    float32[B] too, without gradient: what else the stage tells, by name. ``decoded_BCHW`` are
    pictures in [-1, 1], float32, without gradient, where the stage decodes any.
    """

    loss_B: Tensor
    error_B: Tensor
    timestep_B: Tensor
    parts: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    decoded_BCHW: Tensor | None = None


def losses_of_samples(
    unet: nn.Module,
    batch: DiffusionBatch,
    seeds: Sequence[int],
    *,
    objective: Objective,
    tables: ObjectiveTables,
    empty: tuple[Tensor, Tensor] | None = None,
    text_1_width: int = 0,
    network_dtype: torch.dtype | None = None,
) -> SampleLosses:
    """Draws noise, timesteps and dropout from the samples' seeds and computes every sample's loss.

    Args:
        unet: the network, or a launcher's wrapper of it. If numbers are dropped, it was taught
            ``conditions.allow_dropped_numbers``.
        batch: latents, text and numbers, nothing dropped yet.
        seeds: of the samples; they alone decide what is drawn.
        objective: the settings.
        tables: ``objective.tables(device)``.
        empty: see ``conditions.drop_conditions``.
        text_1_width: see ``conditions.drop_conditions``.
        network_dtype: see ``objective.predict``.
    """
    _, channels, height, width = batch.latents_BCHW.shape
    device = batch.latents_BCHW.device
    draw = draw_for_samples(
        seeds,
        (channels, height, width),
        timesteps=objective.timesteps,
        offset_noise=objective.offset_noise,
        offset=objective.offset,
    )
    draw = NoiseDraw(
        noise_BCHW=to_device(draw.noise_BCHW, device),
        timestep_B=to_device(draw.timestep_B, device),
    )
    dropped = draw_dropped(seeds, objective.dropout)
    error_B = sample_errors(
        unet,
        drop_conditions(batch, dropped, empty=empty, text_1_width=text_1_width),
        draw,
        prediction_type=objective.prediction_type,
        kept_T=tables.kept_T,
        network_dtype=network_dtype,
    )
    return SampleLosses(
        loss_B=error_B * tables.weight_T[draw.timestep_B],
        error_B=error_B.detach(),
        timestep_B=draw.timestep_B,
    )
