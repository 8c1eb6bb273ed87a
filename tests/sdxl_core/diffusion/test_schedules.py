import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.diffusion.schedules import (
    ddim_levels,
    dpm_karras_levels,
    dpm_levels,
    euler_levels,
    karras_sigmas,
    make_timesteps,
    scaled_linear_alphas_cumprod,
    sigma_to_timestep,
    timestep_to_sigma,
    training_sigmas,
)
from sdxl_core.training.noise_levels import kept_shares

SPACINGS = ("leading", "trailing", "linspace")
LEVELS = (euler_levels, ddim_levels, dpm_levels, dpm_karras_levels)


@pytest.mark.parametrize(
    ("timestep", "sigma"), [(0, 0.029168), (199, 0.569285), (200, 0.571666), (999, 14.614647)]
)
def test_training_sigmas_have_the_published_values(timestep: int, sigma: float) -> None:
    assert training_sigmas()[timestep] == pytest.approx(sigma, abs=6e-7)


def test_training_sigmas_follow_from_the_betas_in_exact_arithmetic() -> None:
    betas_T = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod_T = np.cumprod(1 - betas_T)
    exact_T = np.sqrt((1 - alphas_cumprod_T) / alphas_cumprod_T)
    # float32 has 6e-8; in 1 - alphas_cumprod, 0.00085 at the first timestep, that becomes 7e-5,
    # halved by the root.
    np.testing.assert_allclose(scaled_linear_alphas_cumprod(), alphas_cumprod_T, rtol=1e-6)
    np.testing.assert_allclose(training_sigmas(), exact_T, rtol=3.5e-5)


def test_rescaled_sigmas_are_those_that_training_noises_to() -> None:
    """Beside the last, which training has at infinity."""
    kept_T = kept_shares(zero_terminal_snr=True).double().numpy()
    sigmas_T = training_sigmas(zero_terminal_snr=True)
    np.testing.assert_allclose(sigmas_T[:-1], np.sqrt(1 / kept_T[:-1] - 1), rtol=3e-4)
    assert sigmas_T[-1] == pytest.approx(4096)
    assert kept_T[-1] == 0
    assert (np.diff(sigmas_T) > 0).all()
    assert sigmas_T[0] == pytest.approx(training_sigmas()[0], rel=1e-4)


def test_training_sigmas_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        training_sigmas()[0] = 1.0


@pytest.mark.parametrize(
    ("num_steps", "first", "sigma_max"),
    [(20, 951, 11.028), (30, 958, 11.477), (40, 976, 12.739), (50, 981, 13.120)],
)
def test_leading_timesteps_of_the_released_models_have_the_known_range(
    num_steps: int, first: int, sigma_max: float
) -> None:
    timesteps_N = make_timesteps(num_steps, "leading")
    assert (timesteps_N[0], timesteps_N[-1]) == (first, 1)
    assert set(np.diff(timesteps_N)) == {-(1000 // num_steps)}
    assert timestep_to_sigma(timesteps_N[0]) == pytest.approx(sigma_max, abs=6e-4)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("levels", LEVELS)
@given(num_steps=st.integers(1, 999))
def test_levels_fall_from_the_training_range_to_zero(levels, spacing: str, num_steps: int) -> None:
    found = levels(num_steps, spacing, 1)
    assert found.num_steps == num_steps
    assert found.timestep_N1.shape == found.sigma_N1.shape == (num_steps + 1,)
    assert found.timestep_N1[:-1].min() >= 0
    assert (np.diff(found.timestep_N1[:-1]) <= 0).all()
    assert (np.diff(found.sigma_N1) <= 0).all()
    assert training_sigmas()[0] * (1 - 1e-12) <= found.sigma_N1[-2]
    assert found.sigma_N1[0] <= training_sigmas()[-1] * (1 + 1e-12)
    assert found.sigma_N1[-1] == 0
    if levels is not ddim_levels:
        assert np.array_equal(found.target_N, found.sigma_N1[1:])


def test_trailing_timesteps_of_61_steps_are_61_and_none_is_negative() -> None:
    # diffusers 0.42 makes 62 of them, the last one -1.
    timesteps_N = make_timesteps(61, "trailing")
    assert len(timesteps_N) == 61
    assert (timesteps_N[0], timesteps_N[-1]) == (999, 15)


def test_ddim_levels_with_leading_spacing_aim_where_the_next_step_starts() -> None:
    found = ddim_levels(50, "leading", 1)
    assert np.array_equal(found.target_N[:-1], found.sigma_N1[1:-1])
    assert found.target_N[-1] == training_sigmas()[0]


@given(timestep=st.floats(0, 999))
def test_timestep_to_sigma_and_back_is_close(timestep: float) -> None:
    # One way is linear in sigma, the other in its logarithm, so between whole timesteps they part a
    # little.
    assert sigma_to_timestep(timestep_to_sigma(timestep)) == pytest.approx(timestep, abs=0.05)


def test_whole_timesteps_survive_sigmas_and_back() -> None:
    timesteps = np.arange(1000)
    np.testing.assert_allclose(
        sigma_to_timestep(timestep_to_sigma(timesteps)), timesteps, atol=1e-9
    )


def test_timesteps_outside_the_training_range_have_the_sigma_of_the_nearest_end() -> None:
    sigma_low, sigma_high = timestep_to_sigma([-1.0, 1000.0])
    assert (sigma_low, sigma_high) == (training_sigmas()[0], training_sigmas()[-1])


@given(num_steps=st.integers(2, 100), low=st.floats(0.01, 1), span=st.floats(1.1, 1000))
def test_karras_sigmas_are_even_in_their_seventh_root(
    num_steps: int, low: float, span: float
) -> None:
    sigmas_N = karras_sigmas(num_steps, sigma_min=low, sigma_max=low * span)
    assert sigmas_N[0] == pytest.approx(low * span)
    assert sigmas_N[-1] == pytest.approx(low)
    gaps = np.diff(sigmas_N ** (1 / 7))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_levels_for_an_impossible_number_of_steps_are_refused(levels, num_steps: int) -> None:
    with pytest.raises(ConfigError, match=f"found {num_steps}, expected 1 to 1000"):
        levels(num_steps, "linspace", 1)


@pytest.mark.parametrize("levels", LEVELS)
def test_an_unknown_spacing_is_refused_with_the_nearest_name(levels) -> None:
    with pytest.raises(ConfigError, match=r"'leadin'.*did you mean 'leading'"):
        levels(10, "leadin", 1)


def test_a_name_like_no_other_gets_the_list_without_a_guess() -> None:
    with pytest.raises(ConfigError, match=r"'xyz', expected one of leading, trailing, linspace$"):
        make_timesteps(10, "xyz")


def test_dpm_levels_of_1000_leading_steps_are_refused_with_a_way_out() -> None:
    with pytest.raises(ConfigError, match=r"at most 999.*dpmpp_2m_karras"):
        dpm_levels(1000, "leading", 1)
