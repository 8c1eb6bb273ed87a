"""Update rules on Gaussian data, where the probability-flow ODE has an exact solution.

Data of variance s^2 has the ideal denoiser ``D = x * s^2 / (s^2 + sigma^2)``, and the ODE takes
``x`` from one level to another by the factor ``sqrt((s^2 + sigma_end^2) / (s^2 + sigma_start^2))``.
"""

import math

import numpy as np
import pytest
import torch

from sdxl_core.diffusion.samplers import compile_steps, make_step_table, run_table
from sdxl_core.diffusion.schedules import NoiseLevels
from sdxl_core.diffusion.update_rules import (
    ancestral_updates,
    dpmpp_2m_updates,
    euler_updates,
    heun_updates,
)

DATA_STD = 0.7


def levels_of(sigma_N1: np.ndarray) -> NoiseLevels:
    """Levels of one's own, with sigma itself as the network's clock."""
    return NoiseLevels(
        timestep_N1=sigma_N1,
        sigma_N1=sigma_N1,
        target_N=sigma_N1[1:],
        starts_at_unit_variance=False,
    )


def ideal_network(prediction_type: str):
    def predict(scaled_x: torch.Tensor, sigma: float) -> torch.Tensor:
        x = scaled_x * math.sqrt(sigma**2 + 1)
        noise = x * sigma / (DATA_STD**2 + sigma**2)
        if prediction_type == "epsilon":
            return noise
        clean = x - sigma * noise
        return (noise - sigma * clean) / math.sqrt(sigma**2 + 1)

    return predict


def relative_error(rule, sigma_N1: np.ndarray, prediction_type: str = "epsilon") -> float:
    table = compile_steps(rule, levels_of(sigma_N1), prediction_type=prediction_type)
    x = torch.ones((), dtype=torch.float64)
    found = run_table(table, ideal_network(prediction_type), x).item()
    start, end = sigma_N1[0], sigma_N1[-1]
    exact = math.sqrt((DATA_STD**2 + end**2) / (DATA_STD**2 + start**2))
    return abs(found / exact - 1)


def measured_order(rule, make_levels, num_steps: int = 160) -> float:
    """Powers of two that the error falls by when the steps are twice as many."""
    return math.log2(
        relative_error(rule, make_levels(num_steps))
        / relative_error(rule, make_levels(2 * num_steps))
    )


def geometric(num_steps: int) -> np.ndarray:
    return np.geomspace(14.6, 0.03, num_steps + 1)


def down_to_zero(num_steps: int) -> np.ndarray:
    return 14.6 * np.linspace(1, 0, num_steps + 1) ** 3


@pytest.mark.parametrize("make_levels", [geometric, down_to_zero])
@pytest.mark.parametrize(
    ("rule", "order"), [(euler_updates, 1), (heun_updates, 2), (dpmpp_2m_updates, 2)]
)
def test_rule_reaches_the_exact_solution_with_its_order(rule, order: int, make_levels) -> None:
    assert measured_order(rule, make_levels) == pytest.approx(order, abs=0.1)
    assert relative_error(rule, make_levels(320)) < 0.02**order


@pytest.mark.parametrize("rule", [euler_updates, heun_updates, dpmpp_2m_updates])
def test_prediction_type_does_not_change_the_result_of_an_ideal_network(rule) -> None:
    sigma_N1 = down_to_zero(20)
    assert relative_error(rule, sigma_N1, "v_prediction") == pytest.approx(
        relative_error(rule, sigma_N1, "epsilon"), rel=1e-9
    )


@pytest.mark.parametrize("rule", [euler_updates, heun_updates, dpmpp_2m_updates])
def test_a_network_that_knows_the_clean_latents_is_followed_exactly(rule) -> None:
    clean, noise = torch.randn(2, 5, dtype=torch.float64)
    table = compile_steps(rule, levels_of(geometric(7)), prediction_type="epsilon")
    found = run_table(table, lambda _x, _sigma: noise, clean + table.start_sigma * noise)
    torch.testing.assert_close(found, clean + table.end_sigma * noise, rtol=0, atol=1e-12)


def test_ancestral_noise_restores_the_level_of_every_step() -> None:
    # With data that is all zero (D = 0), x is noise alone, and its spread must be sigma after every
    # step.
    sigma_N1 = down_to_zero(12)
    table = compile_steps(ancestral_updates, levels_of(sigma_N1), prediction_type="epsilon")
    variance_N = table.coef_x_E**2 * table.sigma_E**2 + table.coef_noise_E**2
    np.testing.assert_allclose(np.sqrt(variance_N), sigma_N1[1:], atol=1e-12)


def ancestral_result_variance(num_steps: int) -> float:
    """Variance of the result for Gaussian data, exactly: every step is linear in x and noise."""
    table = compile_steps(
        ancestral_updates, levels_of(down_to_zero(num_steps)), prediction_type="epsilon"
    )
    variance = DATA_STD**2 + table.start_sigma**2
    for e in range(table.num_evaluations):
        denoiser = DATA_STD**2 / (DATA_STD**2 + table.sigma_E[e] ** 2)
        factor = table.coef_x_E[e] + table.coef_d_E[e] * denoiser
        variance = factor**2 * variance + table.coef_noise_E[e] ** 2
    return variance


def test_ancestral_results_have_the_variance_of_the_data_in_the_limit() -> None:
    errors = [abs(ancestral_result_variance(n) / DATA_STD**2 - 1) for n in (100, 200, 400)]
    assert errors[2] < 0.03
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(1, abs=0.1)


def test_heun_evaluates_at_both_ends_of_every_step_but_the_last() -> None:
    sigma_N1 = np.array([4.0, 2.0, 1.0, 0.0])
    table = compile_steps(heun_updates, levels_of(sigma_N1), prediction_type="epsilon")
    assert table.sigma_E.tolist() == [4.0, 2.0, 2.0, 1.0, 1.0]
    assert table.timestep_E.tolist() == table.sigma_E.tolist()
    assert table.keep_E.tolist() == [True, False, True, False, True]


def test_a_step_of_no_length_changes_nothing_and_is_not_divided_by() -> None:
    sigma_N1 = np.array([4.0, 2.0, 2.0, 1.0, 0.0])
    table = compile_steps(dpmpp_2m_updates, levels_of(sigma_N1), prediction_type="epsilon")
    assert (table.coef_x_E[1], table.coef_d_E[1], table.coef_kept_d_E[1]) == (1, 0, 0)
    assert (table.coef_d_E[2], table.coef_kept_d_E[2]) == (0.5, 0)


def test_ddim_with_even_strides_is_euler_in_sigma_space() -> None:
    euler, ddim = (
        make_step_table(name, num_steps=10, prediction_type="epsilon", spacing="leading")
        for name in ("euler", "ddim")
    )
    assert np.array_equal(euler.coef_x_E[:-1], ddim.coef_x_E[:-1])
    assert np.array_equal(euler.coef_d_E[:-1], ddim.coef_d_E[:-1])
    assert euler.coef_x_E[-1] == 0 < ddim.coef_x_E[-1]
