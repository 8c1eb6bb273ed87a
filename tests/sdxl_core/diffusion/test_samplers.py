"""Sampler tables against diffusers' schedulers, configured as the released models configure theirs.

The tables are float64, diffusers' arithmetic is float32: 6e-8 for each operation, a few operations
for each step. Up to 250 steps every x agrees to 1e-5 of its largest value, beyond that to 5e-5.
"""

import itertools
import types

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.prompts import SAMPLERS
from sdxl_core.diffusion.samplers import (
    SAMPLER_NAMES,
    StepTable,
    handoff_step,
    make_step_table,
    run_table,
    sampler_timesteps,
    strength_first_step,
    trace_table,
)

SPACINGS = ("leading", "trailing", "linspace")
SHAPE = (1, 4, 3, 5)
RELEASED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
SCHEDULERS = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
}
# Schedulers whose x is variance preserving: sigma-space x divided by sqrt(sigma^2 + 1).
VP_SAMPLERS = ("dpmpp_2m", "dpmpp_2m_karras", "ddim")
# Where diffusers 0.42 divides by zero, or looks up timestep 1000 of 1000. Ours stay finite; see
# below.
BROKEN_IN_DIFFUSERS = (
    ("dpmpp_2m", "leading", 999),
    ("dpmpp_2m", "linspace", 1000),
    ("ddim", "leading", 1000),
)


def scheduler_for(sampler: str, num_steps: int, spacing: str, prediction_type: str = "epsilon"):
    scheduler_class, options = SCHEDULERS[sampler]
    scheduler = scheduler_class(
        **RELEASED, **options, timestep_spacing=spacing, prediction_type=prediction_type
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


RESCALED = {"euler", "euler_ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_karras"}


@pytest.mark.parametrize("num_steps", [4, 30])
@pytest.mark.parametrize("sampler", sorted(RESCALED))
def test_table_of_the_rescaled_schedule_equals_the_diffusers_scheduler(
    sampler: str, num_steps: int
) -> None:
    """All samplers whose diffusers scheduler knows ``rescale_betas_zero_snr``; Heun's does not."""
    scheduler_class, options = SCHEDULERS[sampler]
    scheduler = scheduler_class(
        **RELEASED,
        **options,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(num_steps)
    table = table_for(
        sampler, num_steps, "trailing", prediction_type="v_prediction", zero_terminal_snr=True
    )
    np.testing.assert_allclose(table.timestep_E, scheduler.timesteps.numpy(), rtol=1e-6, atol=1e-6)
    assert table.timestep_E[0] == 999
    assert table.start_sigma == pytest.approx(4096, rel=1e-3)
    noise = noise_of(0)()
    expected = trace_diffusers(scheduler, noise * scheduler.init_noise_sigma)
    start = noise.double() * table.initial_noise_scale
    found = as_diffusers_has_it(
        sampler, table, list(trace_table(table, network, start, noise_of(7)))
    )
    # float32 at a level of 4096; diffusers' DDIM begins at an infinite one, 1 / 4096 away.
    tolerance = 1e-3 if sampler == "ddim" else 1e-4
    for x, expected_x in zip(found, expected, strict=True):
        atol = tolerance * expected_x.abs().max().item()
        torch.testing.assert_close(x, expected_x.double(), rtol=0, atol=atol)


def table_for(sampler: str, num_steps: int, spacing: str = "leading", **options) -> StepTable:
    options = {"prediction_type": "epsilon", **options}
    return make_step_table(sampler, num_steps=num_steps, spacing=spacing, **options)


def network(scaled_x: Tensor, timestep: float) -> Tensor:
    """A stand-in that depends on both inputs, so that a wrong scale or timestep shows."""
    return 0.8 * torch.tanh(scaled_x) + 0.1 * np.sin(float(timestep) / 100)


def noise_of(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator)


def trace_diffusers(scheduler, x: Tensor, first_evaluation: int = 0) -> list[Tensor]:
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first_evaluation)
    ancestral = isinstance(scheduler, EulerAncestralDiscreteScheduler)
    options = {"generator": torch.Generator().manual_seed(7)} if ancestral else {}
    trace = []
    for timestep in scheduler.timesteps[first_evaluation:]:
        output = network(scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(output, timestep, x, return_dict=False, **options)[0]
        trace.append(x)
    return trace


def as_diffusers_has_it(sampler: str, table: StepTable, trace: list[Tensor]) -> list[Tensor]:
    if sampler not in VP_SAMPLERS:
        return trace
    sigma_after_E = [*table.sigma_E[1:], 0.0]
    return [x / np.sqrt(sigma**2 + 1) for x, sigma in zip(trace, sigma_after_E, strict=True)]


def assert_traces_agree(found: list[Tensor], expected: list[Tensor]) -> None:
    tolerance = 1e-5 if len(expected) <= 500 else 5e-5
    for x, expected_x in zip(found, expected, strict=True):
        atol = tolerance * expected_x.abs().max().item()
        torch.testing.assert_close(x, expected_x.double(), rtol=0, atol=atol)


def assert_equals_diffusers(
    sampler: str, num_steps: int, spacing: str, prediction_type: str
) -> None:
    scheduler = scheduler_for(sampler, num_steps, spacing, prediction_type)
    table = table_for(sampler, num_steps, spacing, prediction_type=prediction_type)
    np.testing.assert_allclose(table.timestep_E, scheduler.timesteps.numpy(), rtol=1e-6, atol=1e-6)
    noise = noise_of(0)()
    expected = trace_diffusers(scheduler, noise * scheduler.init_noise_sigma)
    start = noise.double() * table.initial_noise_scale
    found = list(trace_table(table, network, start, noise_of(7)))
    assert_traces_agree(as_diffusers_has_it(sampler, table, found), expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_table_equals_the_diffusers_scheduler_at_every_step(
    sampler: str, spacing: str, prediction_type: str
) -> None:
    # 18 is a Karras schedule whose rounded timesteps depend on float32 sigmas.
    for num_steps in (1, 2, 3, 7, 15, 18, 20, 30, 50, 96):
        assert_equals_diffusers(sampler, num_steps, spacing, prediction_type)


@pytest.mark.parametrize(
    "num_steps", [1000, *(pytest.param(n, marks=pytest.mark.slow) for n in (333, 501, 999))]
)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_table_of_very_many_steps_equals_the_diffusers_scheduler(
    sampler: str, spacing: str, num_steps: int
) -> None:
    if (sampler, spacing, num_steps) in BROKEN_IN_DIFFUSERS:
        pytest.skip("diffusers fails here")
    if (sampler, spacing, num_steps) == ("dpmpp_2m", "leading", 1000):
        pytest.skip("refused by ours, NaN in diffusers")
    if (sampler, spacing, num_steps) == ("euler_ancestral", "leading", 1000):
        pytest.skip("the first step has no length; diffusers draws noise for it and adds none")
    assert_equals_diffusers(sampler, num_steps, spacing, "epsilon")


@pytest.mark.parametrize(("sampler", "spacing", "num_steps"), BROKEN_IN_DIFFUSERS)
def test_table_is_finite_where_diffusers_fails(sampler: str, spacing: str, num_steps: int) -> None:
    table = table_for(sampler, num_steps, spacing)
    assert table.num_evaluations == num_steps
    start = noise_of(0)().double() * table.initial_noise_scale
    assert torch.isfinite(run_table(table, network, start)).all()


@pytest.mark.parametrize("num_steps", [1, 2, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_table_is_finite_and_complete_at_the_ends_of_the_range(
    sampler: str, spacing: str, num_steps: int
) -> None:
    if (sampler, spacing, num_steps) == ("dpmpp_2m", "leading", 1000):
        pytest.skip("refused; see test_schedules")
    table = table_for(sampler, num_steps, spacing)
    assert table.num_evaluations == (2 * num_steps - 1 if sampler == "heun" else num_steps)
    for name, value in vars(table).items():
        assert np.isfinite(value).all(), name
        if name.endswith("_E"):
            assert value.shape == (table.num_evaluations,), name
    assert (table.sigma_E > 0).all()
    assert table.start_sigma == table.sigma_E[0]
    assert table.end_sigma == 0
    # Nothing is read from the kept pair before something was kept.
    assert table.coef_kept_x_E[0] == table.coef_kept_d_E[0] == 0


def test_table_of_20_leading_euler_steps_has_the_known_start() -> None:
    table = table_for("euler", 20)
    assert table.initial_noise_scale == pytest.approx(11.0736, abs=5e-5)
    assert table.start_sigma == pytest.approx(11.028, abs=5e-4)


def test_only_ancestral_draws_noise_and_none_at_the_last_step() -> None:
    draws = {sampler: table_for(sampler, 10).num_noise_draws for sampler in SAMPLER_NAMES}
    assert draws == {sampler: 9 if sampler == "euler_ancestral" else 0 for sampler in SAMPLER_NAMES}


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun", "ddim"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_two_parts_of_a_run_equal_the_whole_to_the_bit(sampler: str, spacing: str) -> None:
    whole = table_for(sampler, 12, spacing)
    start = noise_of(0)() * whole.initial_noise_scale
    expected = run_table(whole, network, start, noise_of(7))
    for step in range(1, 12):
        first = table_for(sampler, 12, spacing, last_step=step)
        second = table_for(sampler, 12, spacing, first_step=step)
        assert first.num_evaluations + second.num_evaluations <= whole.num_evaluations + 1
        assert first.end_sigma == second.start_sigma
        draw_noise = noise_of(7)
        halfway = run_table(first, network, start, draw_noise)
        assert torch.equal(run_table(second, network, halfway, draw_noise), expected)


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_a_part_that_starts_from_noised_latents_equals_diffusers_image_to_image(
    sampler: str,
) -> None:
    num_steps, first_step = 20, strength_first_step(20, 0.3)
    scheduler = scheduler_for(sampler, num_steps, "leading")
    first_evaluation = first_step * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first_evaluation)
    latents, noise = noise_of(1)(), noise_of(2)()
    timestep = scheduler.timesteps[first_evaluation : first_evaluation + 1]
    expected = trace_diffusers(
        scheduler, scheduler.add_noise(latents, noise, timestep), first_evaluation
    )
    table = table_for(sampler, num_steps, first_step=first_step)
    found = list(
        trace_table(table, network, latents.double() + table.start_sigma * noise, noise_of(7))
    )
    assert_traces_agree(as_diffusers_has_it(sampler, table, found), expected)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_karras"])
def test_a_handed_over_multistep_run_equals_two_diffusers_schedulers(sampler: str) -> None:
    num_steps, step = 20, 16
    noise = noise_of(0)()
    base, refiner = (scheduler_for(sampler, num_steps, "leading") for _ in range(2))
    halfway = trace_diffusers(base, noise)[step - 1]
    expected = trace_diffusers(refiner, halfway, step)[-1]
    first = table_for(sampler, num_steps, last_step=step)
    second = table_for(sampler, num_steps, first_step=step)
    start = noise.double() * first.initial_noise_scale
    found = run_table(second, network, run_table(first, network, start))
    assert_traces_agree([found], [expected])


@pytest.mark.parametrize(("num_steps", "kept_by_base"), [(20, 16), (30, 23), (40, 32), (50, 40)])
def test_handoff_splits_are_the_known_ones(num_steps: int, kept_by_base: int) -> None:
    timesteps = sampler_timesteps("euler", num_steps=num_steps, spacing="leading")
    assert handoff_step(timesteps, 0.8) == kept_by_base


def test_a_timestep_at_the_handoff_is_the_bases() -> None:
    assert handoff_step([401.0, 201.0, 1.0], 0.799) == 2
    assert handoff_step([401.0, 200.0, 1.0], 0.799) == 1


def test_handoff_and_strength_agree_with_the_diffusers_pipeline() -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    shares = (0.05, 0.1, 0.29, 0.3, 0.55, 0.7, 0.799, 0.8, 0.95)
    for sampler, num_steps in itertools.product(("euler", "dpmpp_2m", "ddim"), (1, 7, 30, 50)):
        scheduler = scheduler_for(sampler, num_steps, "leading")
        pipeline = types.SimpleNamespace(scheduler=scheduler)
        timesteps = sampler_timesteps(sampler, num_steps=num_steps, spacing="leading")
        for share in shares:
            steps = StableDiffusionXLImg2ImgPipeline.get_timesteps
            _, left = steps(pipeline, num_steps, 0.3, "cpu", denoising_start=share)
            assert handoff_step(timesteps, share) == num_steps - left
            _, left = steps(pipeline, num_steps, share, "cpu")
            assert strength_first_step(num_steps, share) == num_steps - left


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_handoff_and_strength_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"handoff: found .* expected 0 to 1"):
        handoff_step([1.0], share)
    with pytest.raises(ConfigError, match=r"strength: found .* expected 0 to 1"):
        strength_first_step(10, share)


def test_sampler_names_are_those_of_the_prompt_table() -> None:
    assert sorted(SAMPLER_NAMES) == sorted(SAMPLERS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "eular"}, r"sampler: found 'eular'.*did you mean 'euler'"),
        ({"prediction_type": "v-prediction"}, "did you mean 'v_prediction'"),
        ({"spacing": "trailling"}, "did you mean 'trailing'"),
        ({"num_steps": 0}, "found 0, expected 1 to 1000"),
        ({"num_steps": 1001}, "found 1001, expected 1 to 1000"),
        ({"first_step": 5, "last_step": 5}, "found steps 5 to 5, expected 0 <= first < last <= 10"),
        ({"first_step": -1}, "found steps -1 to 10"),
        ({"last_step": 11}, "found steps 0 to 11"),
    ],
)
def test_impossible_tables_are_refused_with_what_was_found(options: dict, message: str) -> None:
    asked = {"sampler": "euler", "num_steps": 10, "spacing": "leading", **options}
    with pytest.raises(ConfigError, match=message):
        table_for(asked.pop("sampler"), **asked)


def test_a_noisy_table_without_a_noise_source_is_refused() -> None:
    table = table_for("euler_ancestral", 3)
    with pytest.raises(ConfigError, match="found no draw_noise"):
        run_table(table, network, torch.zeros(SHAPE))
