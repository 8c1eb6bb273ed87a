"""The objective: what noise is added, what is dropped, what the loss measures."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from sdxl_core.nets.build import build_unet
from sdxl_core.nets.presets import TINY, TINY_REFINER, ModelPreset
from sdxl_core.training.objective import (
    REFINER_TIMESTEPS,
    DiffusionBatch,
    NoiseDraw,
    add_noise,
    diffusion_loss,
    draw_dropped_captions,
    draw_noise,
    drop_captions,
    predict,
    prediction_target,
)


def _batch(preset: ModelPreset = TINY, batch_size: int = 3) -> DiffusionBatch:
    generator = torch.Generator().manual_seed(0)
    return DiffusionBatch(
        latents_BCHW=torch.randn(batch_size, 4, 16, 16, generator=generator),
        states_BTD=torch.randn(
            batch_size, 77, preset.unet.cross_attention_dim, generator=generator
        ),
        pooled_BP=torch.randn(batch_size, preset.text_2.projection_width, generator=generator),
        time_ids_BN=torch.full((batch_size, preset.num_time_ids), 128.0),
    )


class _Oracle(nn.Module):
    """Stands for a network that knows the noise: returns it plus a constant error."""

    def __init__(self, noise_BCHW: Tensor, error: float) -> None:
        super().__init__()
        self.answer_BCHW = noise_BCHW + error

    def forward(self, *_: object, **__: object) -> tuple[Tensor]:
        return (self.answer_BCHW,)


def test_add_noise_agrees_with_the_diffusers_scheduler() -> None:
    batch = _batch()
    draw = draw_noise(batch.latents_BCHW, generator=torch.Generator().manual_seed(1))
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    expected = scheduler.add_noise(batch.latents_BCHW, draw.noise_BCHW, draw.timestep_B)
    torch.testing.assert_close(add_noise(batch.latents_BCHW, draw), expected)


def test_draw_noise_offset_adds_variance_to_the_channel_means_only() -> None:
    latents_BCHW = torch.zeros(4000, 4, 8, 8)
    draw = draw_noise(latents_BCHW, generator=torch.Generator().manual_seed(0), offset_noise=0.5)
    means_BC = draw.noise_BCHW.mean((2, 3))
    assert means_BC.var().item() == pytest.approx(0.25 + 1 / 64, rel=0.05)
    within = draw.noise_BCHW - means_BC[..., None, None]
    assert within.var().item() == pytest.approx(1 - 1 / 64, rel=0.02)


def test_draw_noise_for_the_refiner_stays_in_the_first_200_levels() -> None:
    draw = draw_noise(torch.zeros(5000, 1, 1, 1), timesteps=REFINER_TIMESTEPS)
    assert draw.timestep_B.min() == 0
    assert draw.timestep_B.max() == 199


def test_draw_noise_same_generator_seed_gives_the_same_draw() -> None:
    first, second = (
        draw_noise(torch.zeros(2, 4, 8, 8), generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(first.noise_BCHW, second.noise_BCHW)
    assert torch.equal(first.timestep_B, second.timestep_B)


def test_drop_captions_zeroes_both_text_inputs_of_the_base() -> None:
    batch = _batch()
    dropped = drop_captions(batch, torch.tensor([True, False, True]), None)
    assert dropped.states_BTD[[0, 2]].abs().max() == 0
    assert dropped.pooled_BP[[0, 2]].abs().max() == 0
    assert torch.equal(dropped.states_BTD[1], batch.states_BTD[1])
    assert torch.equal(dropped.pooled_BP[1], batch.pooled_BP[1])
    assert torch.equal(dropped.time_ids_BN, batch.time_ids_BN)


def test_drop_captions_puts_the_empty_prompt_in_for_the_refiner() -> None:
    batch = _batch(TINY_REFINER)
    empty = (torch.full_like(batch.states_BTD[0], 7.0), torch.full_like(batch.pooled_BP[0], 8.0))
    dropped = drop_captions(batch, torch.tensor([True, False, False]), empty)
    assert (dropped.states_BTD[0] == 7.0).all()
    assert (dropped.pooled_BP[0] == 8.0).all()
    assert torch.equal(dropped.states_BTD[1:], batch.states_BTD[1:])


def test_draw_dropped_captions_drops_the_asked_share() -> None:
    dropped_B = draw_dropped_captions(20_000, share=0.1, generator=torch.Generator().manual_seed(0))
    assert dropped_B.float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_diffusion_loss_of_a_known_error_is_its_square() -> None:
    batch = _batch()
    draw = draw_noise(batch.latents_BCHW)
    loss = diffusion_loss(_Oracle(draw.noise_BCHW, 0.5), batch, draw)
    assert loss.item() == pytest.approx(0.25, rel=1e-5)


def test_velocity_target_agrees_with_the_diffusers_scheduler() -> None:
    batch = _batch()
    draw = draw_noise(batch.latents_BCHW, generator=torch.Generator().manual_seed(1))
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    expected = scheduler.get_velocity(batch.latents_BCHW, draw.noise_BCHW, draw.timestep_B)
    torch.testing.assert_close(prediction_target(batch, draw, "v_prediction"), expected)
    assert prediction_target(batch, draw, "epsilon") is draw.noise_BCHW


def test_diffusion_loss_of_a_network_that_knows_the_velocity_is_zero() -> None:
    batch = _batch()
    draw = draw_noise(batch.latents_BCHW)
    oracle = _Oracle(prediction_target(batch, draw, "v_prediction"), 0.0)
    assert diffusion_loss(oracle, batch, draw, prediction_type="v_prediction").item() == 0.0
    assert diffusion_loss(oracle, batch, draw).item() > 0.1


def test_diffusion_loss_weights_apply_by_timestep() -> None:
    batch = _batch(batch_size=2)
    noise_BCHW = torch.randn_like(batch.latents_BCHW)
    draw = NoiseDraw(noise_BCHW=noise_BCHW, timestep_B=torch.tensor([10, 900]))
    weight_T = torch.zeros(1000)
    weight_T[900] = 3.0
    loss = diffusion_loss(_Oracle(noise_BCHW, 1.0), batch, draw, weight_T=weight_T)
    assert loss.item() == pytest.approx(1.5, rel=1e-5)


@pytest.mark.parametrize("preset", [TINY, TINY_REFINER], ids=lambda preset: preset.name)
def test_predict_of_a_sample_does_not_depend_on_its_neighbours(preset: ModelPreset) -> None:
    torch.manual_seed(0)
    unet = build_unet(preset)
    batch = _batch(preset)
    timestep_B = torch.tensor([3, 100, 199])
    with torch.no_grad():
        together = predict(unet, batch, batch.latents_BCHW, timestep_B)
        alone = predict(
            unet,
            dataclasses.replace(
                batch,
                states_BTD=batch.states_BTD[1:2],
                pooled_BP=batch.pooled_BP[1:2],
                time_ids_BN=batch.time_ids_BN[1:2],
            ),
            batch.latents_BCHW[1:2],
            timestep_B[1:2],
        )
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)
