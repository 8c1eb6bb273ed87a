"""Noise levels: SDXL's training schedule, and which of its levels a sampler visits.

Everything is in "sigma" (variance exploding) space: ``x = x_0 + sigma * noise``. Timesteps are the
network's clock, 0 (clean) to 999 (noisiest). The rules are those of diffusers 0.42's schedulers
with the configuration that the released models carry (``beta_start`` 0.00085, ``beta_end`` 0.012,
``scaled_linear``, 1000 timesteps, ``steps_offset`` 1), or with that schedule rescaled to zero
terminal SNR (``rescale_betas_zero_snr``).
"""

# Shapes: T=1000 training timesteps, N steps of a sampler, N1=N+1 noise levels: one before each
# step and one at the end.

import dataclasses
import difflib
import functools
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sdxl_core.contract.errors import ConfigError

NUM_TRAIN_TIMESTEPS = 1000

Spacing = Literal["leading", "trailing", "linspace"]

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NoiseLevels:
    """The levels that a sampler visits, from noisy to clean.

    Attributes:
        timestep_N1: The network's clock at each level; the last entry is only read if the run ends
            before sigma 0.
        sigma_N1: Noise levels, not increasing. The last is 0, or the level at which a part of a run
            ends.
        target_N: The level at which each step's result is made. It differs from ``sigma_N1[1:]``,
            the level that the result is then taken for, in DDIM alone.
        starts_at_unit_variance: Whether pure noise is scaled by ``sqrt(sigma^2 + 1)`` at the start,
            the spread of noised data of unit variance, or by ``sigma`` alone.
    """

    timestep_N1: Floats
    sigma_N1: Floats
    target_N: Floats
    starts_at_unit_variance: bool

    @property
    def num_steps(self) -> int:
        """Steps between the levels."""
        return len(self.target_N)

    def part(self, first_step: int, last_step: int) -> "NoiseLevels":
        """The levels of the steps ``first_step`` to ``last_step``, the latter excluded."""
        return dataclasses.replace(
            self,
            timestep_N1=self.timestep_N1[first_step : last_step + 1],
            sigma_N1=self.sigma_N1[first_step : last_step + 1],
            target_N=self.target_N[first_step:last_step],
        )


@functools.cache
def scaled_linear_alphas_cumprod() -> Floats:
    """Share of the data's variance that is left at each training timestep.

    float64[T], falling, read-only. Computed in float32 and widened, as in diffusers. Exact
    arithmetic gives a first sigma that is 1.3e-5 smaller; that is no matter to an image, but Karras
    timesteps are rounded, and for one step count in four it would turn one of them another way.
    """
    betas_T = (
        torch.linspace(0.00085**0.5, 0.012**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float32) ** 2
    )
    alphas_cumprod_T = torch.cumprod(1.0 - betas_T, dim=0).to(torch.float64).numpy()
    alphas_cumprod_T.flags.writeable = False
    return alphas_cumprod_T


@functools.cache
def rescaled_alphas_cumprod() -> Floats:
    """``scaled_linear_alphas_cumprod`` rescaled so that nothing is left at the last timestep.

    float64[T], falling, read-only (arXiv:2305.08891, algorithm 1). The last is 2**-24 instead of 0,
    so that the noisiest level, 4096, is finite; that and the float32 steps are diffusers'.
    """
    root_T = torch.tensor(scaled_linear_alphas_cumprod(), dtype=torch.float32).sqrt()
    root_T = (root_T - root_T[-1]) * (root_T[0] / (root_T[0] - root_T[-1]))
    kept_T = root_T**2
    alphas_T = torch.cat([kept_T[:1], kept_T[1:] / kept_T[:-1]])
    alphas_cumprod_T = torch.cumprod(1 - (1 - alphas_T), dim=0).to(torch.float64).numpy()
    alphas_cumprod_T[-1] = 2**-24
    alphas_cumprod_T.flags.writeable = False
    return alphas_cumprod_T


@functools.cache
def training_sigmas(*, zero_terminal_snr: bool = False) -> Floats:
    """Noise level of each training timestep, float64[T], read-only.

    Args:
        zero_terminal_snr: of the rescaled schedule, 0.0292 to 4096, instead of the released one's
            0.0292 to 14.6146.
    """
    kept_T = rescaled_alphas_cumprod() if zero_terminal_snr else scaled_linear_alphas_cumprod()
    alphas_cumprod_T = kept_T.astype(np.float32)
    sigmas_T = (((1 - alphas_cumprod_T) / alphas_cumprod_T) ** 0.5).astype(np.float64)
    sigmas_T.flags.writeable = False
    return sigmas_T


def timestep_to_sigma(timestep: ArrayLike, *, zero_terminal_snr: bool = False) -> Floats:
    """Noise level at timesteps, linear between whole ones, constant outside 0 to 999."""
    clock_T = np.arange(NUM_TRAIN_TIMESTEPS)
    sigmas_T = training_sigmas(zero_terminal_snr=zero_terminal_snr)
    return np.interp(np.asarray(timestep, dtype=np.float64), clock_T, sigmas_T)


def sigma_to_timestep(sigma: ArrayLike, *, zero_terminal_snr: bool = False) -> Floats:
    """Timesteps of positive noise levels, linear in log sigma between whole timesteps, 0 to 999."""
    log_sigma = np.log(np.asarray(sigma, dtype=np.float64))
    log_sigmas_T = np.log(training_sigmas(zero_terminal_snr=zero_terminal_snr))
    return np.interp(log_sigma, log_sigmas_T, np.arange(NUM_TRAIN_TIMESTEPS))


def make_timesteps(num_steps: int, spacing: Spacing, steps_offset: int = 1) -> Floats:
    """Timesteps of the Euler family, float64[N], falling; fractional with ``linspace``.

    Args:
        num_steps: Steps, 1 to 1000.
        spacing: ``leading`` counts up from ``steps_offset`` in strides of ``1000 // num_steps`` and
            never reaches the noisiest level (released SDXL). ``trailing`` counts down from 999.
            ``linspace`` has both ends.
        steps_offset: First timestep of ``leading``; the others have no offset.

    Raises:
        ConfigError: on a number of steps or a spacing that does not exist.
    """
    check_num_steps(num_steps)
    if spacing == "leading":
        stride = NUM_TRAIN_TIMESTEPS // num_steps
        return np.arange(num_steps, dtype=np.float64)[::-1] * stride + steps_offset
    if spacing == "trailing":
        # The cut matters: for 62 step counts (61, 103, 121, ...) the float stride makes one step
        # too many, which diffusers keeps, with timestep -1.
        falling = np.arange(NUM_TRAIN_TIMESTEPS, 0, -NUM_TRAIN_TIMESTEPS / num_steps)[:num_steps]
        return falling.round() - 1
    if spacing == "linspace":
        return np.linspace(0, NUM_TRAIN_TIMESTEPS - 1, num_steps)[::-1]
    raise unknown_name_error("timestep spacing", spacing, get_args(Spacing))


def karras_sigmas(
    num_steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0
) -> Floats:
    """Levels evenly spaced in ``sigma ** (1 / rho)``, falling (Karras et al. 2022, eq. 5)."""
    ramp_N = np.linspace(0, 1, num_steps)
    root_max, root_min = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return np.asarray((root_max + ramp_N * (root_min - root_max)) ** rho)


def euler_levels(
    num_steps: int, spacing: Spacing, steps_offset: int, *, zero_terminal_snr: bool = False
) -> NoiseLevels:
    """Levels of diffusers' Euler, Euler ancestral and Heun schedulers."""
    timestep_N = make_timesteps(num_steps, spacing, steps_offset)
    return _down_to_zero(
        timestep_N,
        starts_at_unit_variance=spacing == "leading",
        zero_terminal_snr=zero_terminal_snr,
    )


def ddim_levels(
    num_steps: int, spacing: Spacing, steps_offset: int, *, zero_terminal_snr: bool = False
) -> NoiseLevels:
    """Levels of diffusers' DDIM scheduler with ``set_alpha_to_one`` off.

    Every step aims at a timestep ``1000 // num_steps`` lower, whatever the spacing, and never below
    timestep 0. So a run ends at sigma_0 = 0.029 rather than at 0, and where strides are uneven
    (``trailing``, ``linspace``) a step's result is taken for a level that it was not quite made
    for. Released configurations use ``leading``.
    """
    timestep_N = make_timesteps(num_steps, spacing, steps_offset).round()
    target_timestep_N = np.maximum(timestep_N - NUM_TRAIN_TIMESTEPS // num_steps, 0)
    levels = _down_to_zero(
        timestep_N, starts_at_unit_variance=True, zero_terminal_snr=zero_terminal_snr
    )
    target_N = timestep_to_sigma(target_timestep_N, zero_terminal_snr=zero_terminal_snr)
    return dataclasses.replace(levels, target_N=target_N)


def dpm_levels(
    num_steps: int, spacing: Spacing, steps_offset: int, *, zero_terminal_snr: bool = False
) -> NoiseLevels:
    """Levels of diffusers' DPM-Solver scheduler: those of one step more, without the cleanest.

    Raises:
        ConfigError: ``leading`` has no room for 1000 steps and one more.
    """
    check_num_steps(num_steps)
    if spacing == "trailing":
        timestep_N = make_timesteps(num_steps, spacing)
    elif spacing == "linspace":
        timestep_N = np.linspace(0, NUM_TRAIN_TIMESTEPS - 1, num_steps + 1).round()[:0:-1]
    elif num_steps == NUM_TRAIN_TIMESTEPS and spacing == "leading":
        raise ConfigError(
            f"steps: found {num_steps}, expected at most {num_steps - 1} for sampler dpmpp_2m with "
            "leading timestep spacing; use fewer steps or dpmpp_2m_karras"
        )
    else:
        timestep_N = make_timesteps(num_steps + 1, spacing, steps_offset)[:-1]
    return _down_to_zero(
        timestep_N, starts_at_unit_variance=True, zero_terminal_snr=zero_terminal_snr
    )


def dpm_karras_levels(
    num_steps: int, spacing: Spacing, steps_offset: int, *, zero_terminal_snr: bool = False
) -> NoiseLevels:
    """Levels of diffusers' DPM-Solver scheduler with ``use_karras_sigmas``.

    They span the whole training range whatever the spacing. Timesteps are rounded, sigmas are not.
    """
    make_timesteps(num_steps, spacing, steps_offset)  # refuses what it refuses elsewhere
    sigmas_T = training_sigmas(zero_terminal_snr=zero_terminal_snr)
    sigma_N = karras_sigmas(num_steps, sigma_min=float(sigmas_T[0]), sigma_max=float(sigmas_T[-1]))
    timestep_N = sigma_to_timestep(sigma_N, zero_terminal_snr=zero_terminal_snr).round()
    levels = _down_to_zero(
        timestep_N, starts_at_unit_variance=True, zero_terminal_snr=zero_terminal_snr
    )
    sigma_N1 = np.append(sigma_N, 0.0)
    return dataclasses.replace(levels, sigma_N1=sigma_N1, target_N=sigma_N1[1:])


def _down_to_zero(
    timestep_N: Floats, *, starts_at_unit_variance: bool, zero_terminal_snr: bool
) -> NoiseLevels:
    sigma_N = timestep_to_sigma(timestep_N, zero_terminal_snr=zero_terminal_snr)
    sigma_N1 = np.append(sigma_N, 0.0)
    return NoiseLevels(
        timestep_N1=np.append(timestep_N, 0.0),
        sigma_N1=sigma_N1,
        target_N=sigma_N1[1:],
        starts_at_unit_variance=starts_at_unit_variance,
    )


def check_num_steps(num_steps: int) -> None:
    """Refuses a number of steps outside 1 to 1000.

    Raises:
        ConfigError: it is outside.
    """
    if not 1 <= num_steps <= NUM_TRAIN_TIMESTEPS:
        raise ConfigError(
            f"steps: found {num_steps}, expected 1 to {NUM_TRAIN_TIMESTEPS}, the number of "
            "training timesteps"
        )


def unknown_name_error(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not one of a few, with the nearest one as a suggestion."""
    names = tuple(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{what}: found {name!r}, expected one of {', '.join(names)}{hint}")
