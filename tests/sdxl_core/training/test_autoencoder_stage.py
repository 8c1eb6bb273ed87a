"""The objective of the autoencoder's stage."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.training.autoencoder_stage import (
    AutoencoderObjective,
    AutoencoderPass,
    StageLosses,
    autoencoder_stage_loss,
    latent_shape,
)
from sdxl_core.training.discriminator import PatchDiscriminator, discriminator_loss
from sdxl_core.training.perceptual import PerceptualDistance, RandomFeatures
from sdxl_core.training.sample_draws import normals
from tests.micro_models import micro_model

SEEDS = [3, 4]
PERCEPTUAL = PerceptualDistance(RandomFeatures(num_channels=(4, 8)))
OBJECTIVE = AutoencoderObjective(kl_weight=0.01, num_warmup_steps=10)


def _pictures(num: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num, 3, 4, 5, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, size=(32, 40))


def _pass() -> AutoencoderPass:
    return AutoencoderPass(copy.deepcopy(micro_model("base").vae))


def _discriminator() -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(num_channels=8, num_layers=2)


def _losses(
    autoencoder: AutoencoderPass,
    *,
    step: int = 0,
    discriminator: nn.Module | None = None,
    objective: AutoencoderObjective = OBJECTIVE,
    images_BCHW: Tensor | None = None,
    seeds: list[int] = SEEDS,
) -> StageLosses:
    return autoencoder_stage_loss(
        autoencoder,
        _pictures() if images_BCHW is None else images_BCHW,
        seeds,
        objective=objective,
        step=step,
        perceptual=PERCEPTUAL,
        last_weight=autoencoder.last_weight,
        discriminator=discriminator,
    )


def test_total_is_the_weighted_sum_of_the_parts_that_diffusers_gives() -> None:
    autoencoder = _pass()
    losses = _losses(autoencoder)
    images_BCHW = _pictures()
    vae = autoencoder.autoencoder
    posterior = vae.encode(images_BCHW).latent_dist
    noise_BCHW = normals(SEEDS, latent_shape(images_BCHW), "posterior")
    decoded_BCHW = vae.decode(posterior.mean + posterior.std * noise_BCHW).sample
    reconstruction = (decoded_BCHW - images_BCHW).abs().mean()
    kl = posterior.kl().mean() / (3 * 32 * 40)
    distance = PERCEPTUAL(decoded_BCHW, images_BCHW).mean()
    torch.testing.assert_close(losses.total, reconstruction + distance + 0.01 * kl)
    torch.testing.assert_close(losses.reconstruction, reconstruction.detach())
    torch.testing.assert_close(losses.kl, kl.detach())
    torch.testing.assert_close(losses.decoded_BCHW, decoded_BCHW.detach())
    assert losses.adversarial_factor == 0


def test_losses_are_drawn_from_the_samples_seeds_alone() -> None:
    autoencoder = _pass()
    with torch.no_grad():
        both = _losses(autoencoder)
        torch.manual_seed(123)
        again = _losses(autoencoder)
        swapped = _losses(autoencoder, images_BCHW=_pictures().flip(0), seeds=SEEDS[::-1])
        other = _losses(autoencoder, seeds=[8, 9])
    assert torch.equal(both.decoded_BCHW, again.decoded_BCHW)
    torch.testing.assert_close(swapped.decoded_BCHW.flip(0), both.decoded_BCHW)
    assert not torch.allclose(other.decoded_BCHW, both.decoded_BCHW, atol=1e-3)


def test_discriminator_has_no_say_before_the_warm_up_is_over() -> None:
    autoencoder, discriminator = _pass(), _discriminator()
    without = _losses(autoencoder, step=9)
    during = _losses(autoencoder, step=9, discriminator=discriminator)
    after = _losses(autoencoder, step=10, discriminator=discriminator)
    assert torch.equal(without.total, during.total)
    assert after.adversarial_factor > 0
    torch.testing.assert_close(
        after.total.detach(),
        during.total.detach() + after.adversarial_factor * after.adversarial,
    )


def test_adversarial_gradient_at_the_last_layer_has_the_asked_length() -> None:
    autoencoder, discriminator = _pass(), _discriminator()
    objective = AutoencoderObjective(kl_weight=0.0, adversarial_weight=0.3, num_warmup_steps=0)
    quiet = AutoencoderObjective(kl_weight=0.0, adversarial_weight=0.0)
    last = autoencoder.last_weight
    (kept,) = torch.autograd.grad(_losses(autoencoder, objective=quiet).total, last)
    (total,) = torch.autograd.grad(
        _losses(autoencoder, objective=objective, discriminator=discriminator).total, last
    )
    assert (total - kept).norm().item() == pytest.approx(0.3 * kept.norm().item(), rel=0.02)


def test_adversarial_step_trains_the_autoencoder_and_spares_the_discriminator() -> None:
    autoencoder, discriminator = _pass(), _discriminator()
    _losses(autoencoder, step=10, discriminator=discriminator).total.backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.grad is not None for parameter in autoencoder.parameters())
    assert all(parameter.grad is None for parameter in PERCEPTUAL.parameters())


def test_steps_of_both_sides_lower_what_each_of_them_lowers() -> None:
    autoencoder, discriminator = _pass(), _discriminator()
    objective = AutoencoderObjective(num_warmup_steps=4)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=2e-3, betas=(0.5, 0.9))
    opponent = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    images_BCHW = _pictures()
    reconstructions, hinges = [], []
    for step in range(24):
        losses = _losses(autoencoder, step=step, discriminator=discriminator, objective=objective)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        reconstructions.append(losses.reconstruction.item())
        if objective.is_adversarial(step):
            hinge = discriminator_loss(discriminator, images_BCHW, losses.decoded_BCHW)
            opponent.zero_grad()
            hinge.backward()
            opponent.step()
            hinges.append(hinge.item())
    assert reconstructions[-1] < 0.8 * reconstructions[0]
    assert hinges[-1] < hinges[0]


def test_losses_of_a_bfloat16_autoencoder_are_float32_and_close() -> None:
    exact, rounded = _pass(), _pass().to(torch.bfloat16)
    with torch.no_grad():
        expected, found = _losses(exact), _losses(rounded)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=0.05, atol=0)


def test_missing_discriminator_and_weights_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="no discriminator at step 10"):
        _losses(_pass(), step=10)
    with pytest.raises(ConfigError, match="kl_weight: found -1"):
        AutoencoderObjective(kl_weight=-1.0)
