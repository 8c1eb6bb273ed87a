"""Who runs which steps. What the steps do is compared with diffusers in test_pipeline_oracle."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import RowError
from sdxl_core.contract.request import Request
from sdxl_core.diffusion.conditioning import TextPair, encode_pairs
from sdxl_core.diffusion.refinement import row_task, step_table
from sdxl_core.diffusion.samplers import SAMPLER_NAMES, handoff_step, sampler_timesteps
from sdxl_core.diffusion.tasks import DenoiseTask
from sdxl_core.nets.model import trained_as
from tests.micro_models import micro_model

BASE, REFINER = micro_model("base"), micro_model("refiner")
ONE_STAGE = [name for name in SAMPLER_NAMES if name != "heun"]  # one evaluation for a step


def request(**values) -> Request:
    return Request(prompt="a fox", **({"height": 72, "width": 104, "steps": 30} | values))


def refiner_task_of(row: Request, **values) -> DenoiseTask:
    (states,) = encode_pairs(REFINER, [TextPair("", row.prompt)])
    latents_CHW = torch.zeros(4, row.height // 8, row.width // 8)
    return row_task(row, REFINER, (states, states), latents_CHW=latents_CHW, **values)


def test_a_row_without_refiner_has_all_of_its_steps_on_the_base():
    table = step_table(request(), BASE)

    assert table.num_evaluations == 30
    assert table.end_sigma == 0


def test_a_model_that_was_trained_to_the_end_of_the_schedule_is_sampled_from_there():
    model = trained_as(BASE, prediction_type="v_prediction", zero_terminal_snr=True)
    table = step_table(request(), model)

    assert table.timestep_E[0] == 999
    assert table.start_sigma == pytest.approx(4096)
    # Nothing of the noisy input is left in what it takes for the picture: the velocity is all.
    assert table.skip_E[0] == pytest.approx(0, abs=1e-7)
    assert step_table(request(), BASE).timestep_E[0] < 999


def test_handoff_splits_30_steps_as_diffusers_does():
    row = request(refiner=True)

    assert step_table(row, BASE).num_evaluations == 23
    assert step_table(row, REFINER).num_evaluations == 7


@given(
    steps=st.integers(2, 60),
    handoff=st.floats(0.05, 0.95),
    sampler=st.sampled_from(ONE_STAGE),
)
def test_base_and_refiner_run_every_step_once_or_the_row_is_refused(steps, handoff, sampler):
    row = request(refiner=True, steps=steps, handoff=handoff, sampler=sampler)
    whole = step_table(dataclasses.replace(row, refiner=False), BASE)
    timesteps = sampler_timesteps(sampler, num_steps=steps, spacing="leading")
    if handoff_step(timesteps, handoff) in (0, steps):
        with pytest.raises(RowError, match="invalid_handoff"):
            [step_table(row, model) for model in (BASE, REFINER)]
        return

    base, refiner = step_table(row, BASE), step_table(row, REFINER)

    both = np.concatenate([base.timestep_E, refiner.timestep_E])
    np.testing.assert_array_equal(both, whole.timestep_E)
    assert base.end_sigma == refiner.start_sigma
    assert refiner.end_sigma == 0


def test_image_to_image_gives_the_base_all_steps_and_the_refiner_the_last_ones():
    row = request(refiner=True, strength=0.3, steps=50)

    assert step_table(row, BASE).num_evaluations == 50
    refiner = step_table(row, REFINER)
    assert refiner.num_evaluations == 15
    assert refiner.timestep_E[0] == 281


@pytest.mark.parametrize(
    ("values", "model"),
    [
        ({"handoff": 0.999, "steps": 4}, REFINER),
        ({"handoff": 0.01, "steps": 4}, BASE),
        ({"strength": 0.1, "steps": 4}, REFINER),
    ],
)
def test_a_network_left_without_a_step_refuses_the_row_and_says_what_to_do(values, model):
    with pytest.raises(RowError, match=f"leave the {model.kind} no step; use more steps") as caught:
        step_table(request(refiner=True, **values), model)

    assert caught.value.reason == "invalid_handoff"


def test_steps_that_a_sampler_cannot_do_are_the_rows_fault():
    with pytest.raises(RowError, match="at most 999") as caught:
        step_table(request(sampler="dpmpp_2m", steps=1000), BASE)

    assert caught.value.reason == "invalid_steps"


def test_the_models_own_schedule_is_used():
    trailing = dataclasses.replace(BASE, timestep_spacing="trailing")
    offset = dataclasses.replace(BASE, steps_offset=0)
    velocity = dataclasses.replace(BASE, prediction_type="v_prediction")

    assert step_table(request(), BASE).timestep_E[0] == 958
    assert step_table(request(), trailing).timestep_E[0] == 999
    assert step_table(request(), offset).timestep_E[0] == 957
    assert step_table(request(), velocity).skip_E[0] < 1


def test_handed_over_latents_are_taken_as_they_are_and_finished_ones_are_noised():
    assert not refiner_task_of(request(refiner=True)).add_noise
    assert refiner_task_of(request(refiner=True, strength=0.5)).add_noise


def test_refiners_noise_comes_after_the_draws_of_the_base():
    row = request(refiner=True, strength=0.5)

    assert refiner_task_of(row, num_draws_done=1).num_draws_done == 1
    # Ancestral runs in diffusers draw once more than they need.
    ancestral = dataclasses.replace(row, sampler="euler_ancestral")
    assert refiner_task_of(ancestral, num_draws_done=30).num_draws_done == 31
    handed_over = dataclasses.replace(ancestral, strength=None)
    assert refiner_task_of(handed_over, num_draws_done=23).num_draws_done == 23


def test_latents_are_an_eighth_of_the_picture_height_first():
    task = refiner_task_of(request(refiner=True))

    assert (task.latent_height, task.latent_width) == (9, 13)
