"""Samplers as tables: what to do with every network evaluation of one row, worked out before the
first.

Each sampler here is linear in its inputs: after an evaluation, the next ``x`` is a weighted sum of
``x``, of the network's estimate of the clean latents, of one kept pair of both, and of fresh noise.
So a trajectory is a small table of weights, and one vectorised update serves rows with different
samplers, step counts and positions. ``run_table`` is the plain loop that says what a table means.

All states are in sigma space (``x = x_0 + sigma * noise``), also those of DDIM and DPM-Solver++,
which diffusers runs in variance-preserving space (``x / sqrt(sigma^2 + 1)``). Complete runs end
with diffusers' final latents in either case; a part of a run ends in sigma space, at the level
where the next part begins.
"""

# Shapes: E network evaluations, N steps, N1=N+1 noise levels, BCHW latents.

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sdxl_core.contract.errors import ConfigError
from sdxl_core.diffusion.schedules import (
    NUM_TRAIN_TIMESTEPS,
    Floats,
    NoiseLevels,
    Spacing,
    check_num_steps,
    ddim_levels,
    dpm_karras_levels,
    dpm_levels,
    euler_levels,
    unknown_name_error,
)
from sdxl_core.diffusion.update_rules import (
    Updates,
    ancestral_updates,
    dpmpp_2m_updates,
    euler_updates,
    heun_updates,
)

PredictionType = Literal["epsilon", "v_prediction"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StepTable:
    """One row's trajectory; float64 arrays with one entry per network evaluation.

    Evaluation e calls the network with ``x * input_scale`` and ``timestep``, estimates the clean
    latents ``D = skip * x + out * output``, and goes on with::

        x_next = (coef_x * x + coef_d * D
                  + coef_kept_x * x_kept + coef_kept_d * D_kept + coef_noise * noise)

    Then, where ``keep`` is set, ``x_kept`` and ``D_kept`` become the ``x`` and ``D`` of this
    evaluation. Their weights are 0 until something was kept; where ``coef_noise`` is 0 no noise is
    drawn.

    Attributes:
        timestep_E: The network's clock, 0 to 999 (1000 with 1000 leading steps, as in diffusers);
            fractional with linspace spacing.
        sigma_E: Noise level of ``x`` at the evaluation, above 0.
        input_scale_E: ``1 / sqrt(sigma^2 + 1)``.
        skip_E: Weight of ``x`` in ``D``.
        out_E: Weight of the network's output in ``D``.
        coef_x_E: Weight of ``x``.
        coef_d_E: Weight of ``D``.
        coef_kept_x_E: Weight of the kept ``x``.
        coef_kept_d_E: Weight of the kept ``D``.
        coef_noise_E: Weight of fresh unit normal noise.
        keep_E: Whether to keep ``x`` and ``D``, bool.
        initial_noise_scale: A run from pure noise starts with this times unit normal noise.
        start_sigma: A run from latents starts with them plus this times unit normal noise. Equal to
            ``sigma_E[0]``.
        end_sigma: Noise level of the result: 0 for a complete run, else where the next part begins.
    """

    timestep_E: Floats
    sigma_E: Floats
    input_scale_E: Floats
    skip_E: Floats
    out_E: Floats
    coef_x_E: Floats
    coef_d_E: Floats
    coef_kept_x_E: Floats
    coef_kept_d_E: Floats
    coef_noise_E: Floats
    keep_E: NDArray[np.bool_]
    initial_noise_scale: float
    start_sigma: float
    end_sigma: float

    @property
    def num_evaluations(self) -> int:
        """Network evaluations: the number of steps, or nearly twice that for Heun."""
        return len(self.timestep_E)

    @property
    def num_noise_draws(self) -> int:
        """Draws of fresh noise during the run; the starting noise is not among them."""
        return int(np.count_nonzero(self.coef_noise_E))


_LevelsRule = Callable[..., NoiseLevels]
_Method = Callable[[NoiseLevels], Updates]

_SAMPLERS: dict[str, tuple[_LevelsRule, _Method]] = {
    "euler": (euler_levels, euler_updates),
    "euler_ancestral": (euler_levels, ancestral_updates),
    "heun": (euler_levels, heun_updates),
    "dpmpp_2m": (dpm_levels, dpmpp_2m_updates),
    "dpmpp_2m_karras": (dpm_karras_levels, dpmpp_2m_updates),
    "ddim": (ddim_levels, euler_updates),
}

SAMPLER_NAMES = tuple(_SAMPLERS)


def make_step_table(
    sampler: str,
    *,
    num_steps: int,
    prediction_type: PredictionType,
    spacing: Spacing,
    steps_offset: int = 1,
    zero_terminal_snr: bool = False,
    first_step: int = 0,
    last_step: int | None = None,
) -> StepTable:
    """Compiles the steps ``first_step`` to ``last_step`` (excluded) of a ``num_steps`` trajectory.

    Every part starts without memory: DPM-Solver++ takes a first-order step first, as a fresh
    diffusers scheduler does. Steps are whole: a Heun step keeps both of its evaluations in one
    part, so the second one may lie below the hand-off. (diffusers counts evaluations; its base
    stops between the two, and its refiner then repeats the step from latents that have already made
    it.)

    Args:
        sampler: One of ``SAMPLER_NAMES``.
        num_steps: Steps of the whole trajectory, 1 to 1000.
        prediction_type: What the network predicts.
        spacing: Timestep spacing; see ``make_timesteps``. Karras levels do not depend on it.
        steps_offset: See ``make_timesteps``.
        zero_terminal_snr: The levels are those of the rescaled schedule; see ``training_sigmas``.
        first_step: Steps that others do before.
        last_step: Where to stop; None goes to the end.

    Raises:
        ConfigError: on a name that does not exist, a number of steps out of range, or a part
            without steps.
    """
    levels = _levels(sampler, num_steps, spacing, steps_offset, zero_terminal_snr)
    last_step = num_steps if last_step is None else last_step
    if not 0 <= first_step < last_step <= num_steps:
        raise ConfigError(
            f"part of a run: found steps {first_step} to {last_step}, expected "
            f"0 <= first < last <= {num_steps}"
        )
    part = levels.part(first_step, last_step)
    return compile_steps(_SAMPLERS[sampler][1], part, prediction_type=prediction_type)


def compile_steps(
    method: _Method, levels: NoiseLevels, *, prediction_type: PredictionType
) -> StepTable:
    """Compiles a method (``euler_updates`` and its siblings) on levels of one's own.

    Raises:
        ConfigError: on an unknown prediction type.
    """
    updates = method(levels)
    sigma_E = updates.sigma_E
    input_scale_E = 1 / np.sqrt(sigma_E**2 + 1)
    if prediction_type == "epsilon":
        skip_E, out_E = np.ones_like(sigma_E), -sigma_E
    elif prediction_type == "v_prediction":
        skip_E, out_E = input_scale_E**2, -sigma_E * input_scale_E
    else:
        raise unknown_name_error("prediction type", prediction_type, get_args(PredictionType))

    def spread(weight: Floats | float) -> Floats:
        return np.array(np.broadcast_to(weight, sigma_E.shape), dtype=np.float64)

    start_sigma = float(levels.sigma_N1[0])
    unit = 1.0 if levels.starts_at_unit_variance else 0.0
    return StepTable(
        timestep_E=updates.timestep_E,
        sigma_E=sigma_E,
        input_scale_E=input_scale_E,
        skip_E=skip_E,
        out_E=out_E,
        coef_x_E=updates.x,
        coef_d_E=updates.d,
        coef_kept_x_E=spread(updates.kept_x),
        coef_kept_d_E=spread(updates.kept_d),
        coef_noise_E=spread(updates.noise),
        keep_E=np.array(np.broadcast_to(updates.keep, sigma_E.shape)),
        initial_noise_scale=float(np.sqrt(start_sigma**2 + unit)),
        start_sigma=start_sigma,
        end_sigma=float(levels.sigma_N1[-1]),
    )


def sampler_timesteps(
    sampler: str,
    *,
    num_steps: int,
    spacing: Spacing,
    steps_offset: int = 1,
    zero_terminal_snr: bool = False,
) -> Floats:
    """The timestep at which each step starts, float64[N], falling; what ``handoff_step`` divides.

    Raises:
        ConfigError: as ``make_step_table``.
    """
    return _levels(sampler, num_steps, spacing, steps_offset, zero_terminal_snr).timestep_N1[:-1]


def _levels(
    sampler: str, num_steps: int, spacing: Spacing, steps_offset: int, zero_terminal_snr: bool
) -> NoiseLevels:
    if sampler not in _SAMPLERS:
        raise unknown_name_error("sampler", sampler, SAMPLER_NAMES)
    rule = _SAMPLERS[sampler][0]
    return rule(num_steps, spacing, steps_offset, zero_terminal_snr=zero_terminal_snr)


def handoff_step(
    timesteps: ArrayLike, handoff: float, num_train_timesteps: int = NUM_TRAIN_TIMESTEPS
) -> int:
    """Number of steps that the base keeps; the refiner goes on from its latents as they are.

    Args:
        timesteps: Where each step starts: ``sampler_timesteps``.
        handoff: Share of the noise range that is the base's, 0 to 1 (diffusers' ``denoising_end``);
            0.8 leaves the refiner the 200 cleanest levels, those it was trained on.
        num_train_timesteps: Length of the training schedule.

    Raises:
        ConfigError: if ``handoff`` is out of range.
    """
    _check_share("handoff", handoff)
    cutoff = round(num_train_timesteps - handoff * num_train_timesteps)
    return int(np.count_nonzero(np.asarray(timesteps) >= cutoff))


def strength_first_step(num_steps: int, strength: float) -> int:
    """The step at which an image-to-image run starts; ``num_steps`` if nothing is left to do.

    Rounded as in diffusers: the number of steps to run is rounded down.

    Args:
        num_steps: Steps of the whole trajectory, 1 to 1000.
        strength: Share of the steps to run, 0 to 1.

    Raises:
        ConfigError: if either is out of range.
    """
    check_num_steps(num_steps)
    _check_share("strength", strength)
    return num_steps - min(int(num_steps * strength), num_steps)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"{name}: found {share}, expected 0 to 1")


def trace_table(
    table: StepTable,
    model: Callable[[Tensor, float], Tensor],
    x: Tensor,
    draw_noise: Callable[[], Tensor] | None = None,
) -> Iterator[Tensor]:
    """``run_table``, giving ``x`` after every evaluation."""
    kept_x = kept_d = x * 0
    for e in range(table.num_evaluations):
        output = model(x * float(table.input_scale_E[e]), float(table.timestep_E[e]))
        denoised = float(table.skip_E[e]) * x + float(table.out_E[e]) * output
        next_x = float(table.coef_x_E[e]) * x + float(table.coef_d_E[e]) * denoised
        if table.coef_kept_x_E[e] or table.coef_kept_d_E[e]:
            next_x = next_x + float(table.coef_kept_x_E[e]) * kept_x
            next_x = next_x + float(table.coef_kept_d_E[e]) * kept_d
        if table.coef_noise_E[e]:
            if draw_noise is None:
                raise ConfigError(f"evaluation {e} needs noise: found no draw_noise, expected one")
            next_x = next_x + float(table.coef_noise_E[e]) * draw_noise()
        if table.keep_E[e]:
            kept_x, kept_d = x, denoised
        x = next_x
        yield x


def run_table(
    table: StepTable,
    model: Callable[[Tensor, float], Tensor],
    x: Tensor,
    draw_noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Runs a table the plain way; the definition of what a table means.

    Args:
        table: The trajectory, or a part of one.
        model: The network: (scaled x, timestep) -> prediction, shaped as x.
        x: Where to start, in sigma space, any shape; for a run from noise
            ``table.initial_noise_scale * noise``.
        draw_noise: Fresh unit normal noise, shaped as x; called ``table.num_noise_draws`` times.

    Returns:
        The result, at noise level ``table.end_sigma``, in the dtype of ``x``.
    """
    return collections.deque(trace_table(table, model, x, draw_noise), maxlen=1)[0]
