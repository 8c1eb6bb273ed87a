"""Update rules of the samplers: the weights with which an evaluation enters the next ``x``.

A rule looks at noise levels alone, so any rule runs on any levels. ``D`` is the network's estimate
of the clean latents; what the weights mean is said in ``sdxl_core.diffusion.samplers.StepTable``.
"""

# Shapes: E network evaluations, N steps, N1=N+1 noise levels.

import dataclasses

import numpy as np
from numpy.typing import NDArray

from sdxl_core.diffusion.schedules import Floats, NoiseLevels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Updates:
    """Where a rule evaluates, and its weights; a scalar stands for every evaluation.

    The names are those of ``StepTable``.
    """

    timestep_E: Floats
    sigma_E: Floats
    x: Floats
    d: Floats
    kept_x: Floats | float = 0.0
    kept_d: Floats | float = 0.0
    noise: Floats | float = 0.0
    keep: NDArray[np.bool_] | bool = False


def euler_updates(levels: NoiseLevels) -> Updates:
    """Euler's method, ``x + (x - D) / sigma * (sigma_next - sigma)``, and DDIM.

    In sigma space the two are the same. DDIM's result, made for the level ``target`` and carried in
    variance-preserving space, is read as one for the next level: that is the factor ``gain``, 1
    wherever the two levels agree.
    """
    sigma_N, next_N = levels.sigma_N1[:-1], levels.sigma_N1[1:]
    gain_N = np.sqrt((next_N**2 + 1) / (levels.target_N**2 + 1))
    ratio_N = levels.target_N / sigma_N
    return Updates(
        timestep_E=levels.timestep_N1[:-1],
        sigma_E=sigma_N,
        x=gain_N * ratio_N,
        d=gain_N * (1 - ratio_N),
    )


def ancestral_updates(levels: NoiseLevels) -> Updates:
    """Euler to ``sigma_down = sigma_next^2 / sigma``, then noise up to ``sigma_next`` again."""
    sigma_N, next_N = levels.sigma_N1[:-1], levels.sigma_N1[1:]
    ratio_N = (next_N / sigma_N) ** 2
    return Updates(
        timestep_E=levels.timestep_N1[:-1],
        sigma_E=sigma_N,
        x=ratio_N,
        d=1 - ratio_N,
        noise=next_N * np.sqrt(1 - ratio_N),
    )


def heun_updates(levels: NoiseLevels) -> Updates:
    """Heun's method: an Euler step, then the same step with the mean of the slopes at both ends.

    A step to sigma 0 stays Euler's, for there is no slope at 0. N steps to 0 make 2 N - 1
    evaluations.
    """
    sigma_N, next_N = levels.sigma_N1[:-1], levels.sigma_N1[1:]
    corrected_N = next_N > 0
    # The slope is (x - D) / sigma; each of the two counts for half of the way.
    half_N = (next_N - sigma_N) / 2
    start_N = half_N / sigma_N
    end_N = half_N / np.where(corrected_N, next_N, 1.0)
    zero_N = np.zeros_like(sigma_N)
    used_E = np.stack([np.ones_like(corrected_N), corrected_N], axis=1).ravel()

    def interleave(predictor_N: Floats, corrector_N: Floats) -> Floats:
        return np.stack([predictor_N, corrector_N], axis=1).ravel()[used_E]

    return Updates(
        timestep_E=interleave(levels.timestep_N1[:-1], levels.timestep_N1[1:]),
        sigma_E=interleave(sigma_N, next_N),
        x=interleave(1 + 2 * start_N, end_N),
        d=interleave(-2 * start_N, -end_N),
        kept_x=interleave(zero_N, 1 + start_N),
        kept_d=interleave(zero_N, -start_N),
        keep=interleave(zero_N + 1, zero_N) > 0,
    )


def dpmpp_2m_updates(levels: NoiseLevels) -> Updates:
    """DPM-Solver++ (2M), midpoint form (Lu et al. 2022, algorithm 2).

    Steps ``h`` are measured in ``-log(sigma)``. First order where there is no slope of D to use: at
    the start, at the step to sigma 0, and after a step of no length (1000 linspace steps have one;
    diffusers divides by zero there).
    """
    sigma_N, next_N = levels.sigma_N1[:-1], levels.sigma_N1[1:]
    ratio_N = next_N / sigma_N
    h_N = -np.log(np.where(ratio_N > 0, ratio_N, 1.0))
    h_before_N = np.concatenate([[0.0], h_N[:-1]])
    weight_N = np.where(h_before_N > 0, h_N / np.where(h_before_N > 0, 2 * h_before_N, 1.0), 0.0)
    return Updates(
        timestep_E=levels.timestep_N1[:-1],
        sigma_E=sigma_N,
        x=ratio_N,
        d=(1 - ratio_N) * (1 + weight_N),
        kept_d=-(1 - ratio_N) * weight_N,
        keep=True,
    )
