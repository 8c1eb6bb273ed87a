"""The loss of a sample: a function of the weights, the sample and its seed."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.build import build_unet
from sdxl_core.nets.model import PredictionType
from sdxl_core.training.conditions import ConditionDropout, allow_dropped_numbers
from sdxl_core.training.objective import OFFSET_NOISE, REFINER_TIMESTEPS, DiffusionBatch
from sdxl_core.training.sample_draws import draw_for_samples
from sdxl_core.training.seeded_objective import Objective, SampleLosses, losses_of_samples
from tests.micro_models import MICRO_BASE, MICRO_REFINER, attentive_model

SEEDS = [5, 17, 2**62 + 3]
EVERYTHING = Objective(
    prediction_type="v_prediction",
    offset_noise=OFFSET_NOISE,
    min_snr_gamma=5.0,
    zero_terminal_snr=True,
    dropout=ConditionDropout(
        text=0.5, text_parts="apart", original_size=0.5, crop=0.5, last_numbers=0.5
    ),
)


def _batch(batch_size: int = 3, device: str = "cpu") -> DiffusionBatch:
    generator = torch.Generator().manual_seed(0)
    return DiffusionBatch(
        latents_BCHW=torch.randn(batch_size, 4, 8, 8, generator=generator).to(device),
        states_BTD=torch.randn(batch_size, 7, 40, generator=generator).to(device),
        pooled_BP=torch.randn(batch_size, 16, generator=generator).to(device),
        time_ids_BN=torch.tensor([[64.0, 80, 0, 8, 64, 64]]).repeat(batch_size, 1).to(device),
    )


def _rows(batch: DiffusionBatch, chosen: slice) -> DiffusionBatch:
    return DiffusionBatch(
        **{field.name: getattr(batch, field.name)[chosen] for field in dataclasses.fields(batch)}
    )


def _losses(
    unet: nn.Module, batch: DiffusionBatch, seeds: list[int], objective: Objective
) -> SampleLosses:
    tables = objective.tables(batch.latents_BCHW.device)
    return losses_of_samples(
        unet, batch, seeds, objective=objective, tables=tables, text_1_width=24
    )


def test_losses_of_samples_do_not_depend_on_how_they_are_batched() -> None:
    unet = attentive_model(MICRO_BASE, seed=1).unet
    allow_dropped_numbers(unet)
    batch = _batch()
    with torch.no_grad():
        together = _losses(unet, batch, SEEDS, EVERYTHING)
        apart = [
            _losses(unet, _rows(batch, slice(i, i + 1)), SEEDS[i : i + 1], EVERYTHING)
            for i in range(3)
        ]
    assert together.timestep_B.tolist() == [int(losses.timestep_B) for losses in apart]
    torch.testing.assert_close(together.loss_B, torch.cat([losses.loss_B for losses in apart]))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_losses_agree_with_a_loop_written_as_the_diffusers_training_script(
    prediction_type: PredictionType,
) -> None:
    unet = attentive_model(MICRO_BASE, seed=1).unet
    batch = _batch()
    objective = Objective(
        prediction_type=prediction_type, min_snr_gamma=5.0, dropout=ConditionDropout(text=0.0)
    )
    losses = _losses(unet, batch, SEEDS, objective)
    losses.loss_B.mean().backward()
    found = unet.conv_in.weight.grad.clone()
    unet.zero_grad()

    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
    )
    draw = draw_for_samples(SEEDS, (4, 8, 8), offset_noise=0.0)
    noisy = scheduler.add_noise(batch.latents_BCHW, draw.noise_BCHW, draw.timestep_B)
    predicted = unet(
        noisy,
        draw.timestep_B,
        batch.states_BTD,
        added_cond_kwargs={"text_embeds": batch.pooled_BP, "time_ids": batch.time_ids_BN},
    ).sample
    target, snr = draw.noise_BCHW, compute_snr(scheduler, draw.timestep_B)
    weights = snr.clamp(max=5.0) / snr
    if prediction_type == "v_prediction":
        target = scheduler.get_velocity(batch.latents_BCHW, draw.noise_BCHW, draw.timestep_B)
        weights = snr.clamp(max=5.0) / (snr + 1)
    error = nn.functional.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))
    (error * weights).mean().backward()

    torch.testing.assert_close(losses.loss_B, error * weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses.error_B, error.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, unet.conv_in.weight.grad, rtol=1e-3, atol=1e-6)


def test_losses_of_a_refiner_use_its_noise_levels_and_its_numbers() -> None:
    unet = attentive_model(MICRO_REFINER, seed=2).unet
    objective = Objective(timesteps=REFINER_TIMESTEPS, dropout=ConditionDropout(text=1.0))
    batch = dataclasses.replace(
        _batch(),
        states_BTD=torch.randn(3, 7, 16),
        time_ids_BN=torch.tensor([[64.0, 64, 0, 0, 6]] * 3),
    )
    empty = (torch.randn(7, 16), torch.randn(16))
    with torch.no_grad():
        losses = losses_of_samples(
            unet, batch, SEEDS, objective=objective, tables=objective.tables(), empty=empty
        )
        told_empty = dataclasses.replace(
            batch, states_BTD=empty[0].expand(3, -1, -1), pooled_BP=empty[1].expand(3, -1)
        )
        keeping = dataclasses.replace(objective, dropout=ConditionDropout(text=0.0))
        expected = losses_of_samples(
            unet, told_empty, SEEDS, objective=keeping, tables=objective.tables()
        )
    assert losses.timestep_B.max() < 200
    assert torch.equal(losses.loss_B, expected.loss_B)


def test_losses_never_make_the_host_wait_for_the_device() -> None:
    """Tensors of the meta device have no values, so looking at one is an error."""
    with torch.device("meta"):
        unet = build_unet(MICRO_BASE)
    allow_dropped_numbers(unet)
    losses = _losses(unet, _batch(device="meta"), SEEDS, EVERYTHING)
    losses.loss_B.mean().backward()
    assert losses.loss_B.shape == (3,)
    assert unet.conv_in.weight.grad.is_meta


def test_losses_of_a_bfloat16_network_are_float32_and_close() -> None:
    unet = attentive_model(MICRO_BASE, seed=1).unet
    objective = Objective()
    with torch.no_grad():
        exact = _losses(unet, _batch(), SEEDS, objective)
        rounded = losses_of_samples(
            unet.to(torch.bfloat16),
            _batch(),
            SEEDS,
            objective=objective,
            tables=objective.tables(),
            network_dtype=torch.bfloat16,
        )
    assert rounded.loss_B.dtype == torch.float32
    torch.testing.assert_close(rounded.loss_B, exact.loss_B, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_terminal_snr": True}, "expected v_prediction"),
        ({"min_snr_gamma": -1.0}, "min_snr_gamma: found -1"),
        ({"offset_noise": -0.1}, "offset_noise: found -0.1"),
        ({"timesteps": (200, 100)}, "timesteps: found 200 to 100"),
    ],
)
def test_objective_that_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objective(**settings)  # type: ignore[arg-type]
