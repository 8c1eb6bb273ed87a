"""The scheduler's settings and the pipeline's flags, written and read."""

import pytest
from diffusers import EulerDiscreteScheduler

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.pipeline_configs import (
    SamplingSettings,
    model_index,
    scheduler_config,
    settings_of_configs,
)

RELEASED_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


def test_default_settings_write_the_released_scheduler_config():
    written = scheduler_config(SamplingSettings(force_zeros_for_empty_prompt=True))
    assert {**written, "_diffusers_version": "0.19.0.dev0"} == RELEASED_SCHEDULER


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_settings_survive_writing_and_reading(kind):
    settings = SamplingSettings(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=0,
        zero_terminal_snr=True,
        force_zeros_for_empty_prompt=False,
    )
    index = model_index(kind, settings)
    assert settings_of_configs(index, scheduler_config(settings), url="x") == settings


def test_refiner_index_says_what_the_released_one_says():
    index = model_index("refiner", SamplingSettings(force_zeros_for_empty_prompt=False))
    assert index["_class_name"] == "StableDiffusionXLImg2ImgPipeline"
    assert index["requires_aesthetics_score"] is True
    assert index["force_zeros_for_empty_prompt"] is False
    assert index["text_encoder"] == [None, None]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta_schedule", "linear"),
        ("beta_end", 0.02),
        ("num_train_timesteps", 500),
        ("rescale_betas_zero_snr", True),  # with epsilon
        ("prediction_type", "sample"),
        ("timestep_spacing", "dense"),
    ],
)
def test_schedule_that_is_not_sdxls_is_refused_with_its_name(name, value):
    scheduler = {**RELEASED_SCHEDULER, name: value}
    with pytest.raises(WeightsError, match=name) as caught:
        settings_of_configs({}, scheduler, url="folder")
    assert "folder/scheduler/scheduler_config.json" in str(caught.value)


def test_diffusers_makes_the_scheduler_that_a_rescaled_schedule_asks_for():
    settings = SamplingSettings(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        zero_terminal_snr=True,
        force_zeros_for_empty_prompt=True,
    )
    peer = EulerDiscreteScheduler.from_config(scheduler_config(settings))
    assert peer.alphas_cumprod[-1] == 2**-24
    peer.set_timesteps(10)
    assert peer.timesteps[0] == 999
    assert "rescale_betas_zero_snr" not in scheduler_config(
        SamplingSettings(force_zeros_for_empty_prompt=True)
    )
