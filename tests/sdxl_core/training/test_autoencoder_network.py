"""Autoencoder and discriminator as one network to train."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.training.autoencoder_network import (
    LOSS_PARTS,
    AdversarialPair,
    AutoencoderSettings,
    autoencoder_parameters,
    bytes_of,
    losses_of_pictures,
    pictures_of,
    refuse_small_pictures,
)
from sdxl_core.training.autoencoder_stage import AutoencoderObjective, autoencoder_stage_loss
from sdxl_core.training.discriminator import PatchDiscriminator, discriminator_loss
from sdxl_core.training.perceptual import PerceptualDistance, RandomFeatures
from sdxl_core.training.picture_metrics import psnr, ssim
from sdxl_core.training.seeded_objective import SampleLosses
from tests.micro_models import micro_model

PERCEPTUAL = PerceptualDistance(RandomFeatures(num_channels=(4, 8)))
OBJECTIVE = AutoencoderObjective(kl_weight=0.01, num_warmup_steps=10)
SETTINGS = AutoencoderSettings(
    objective=OBJECTIVE, discriminator_channels=8, discriminator_layers=2
)
SEEDS = [3, 4]


def _pair() -> AdversarialPair:
    return AdversarialPair(copy.deepcopy(micro_model("base").vae), SETTINGS, seed=1)


def _pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 4, 5, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, size=(32, 40))


def _losses(pair: AdversarialPair, step: int) -> SampleLosses:
    return losses_of_pictures(
        pair, _pictures(), SEEDS, objective=OBJECTIVE, step=step, perceptual=PERCEPTUAL
    )


def test_one_backward_pass_gives_each_side_its_own_gradient_alone() -> None:
    pair = _pair()
    _losses(pair, 10).loss_B.mean().backward()
    together = [p.grad.clone() for p in pair.parameters() if p.grad is not None]
    pair.zero_grad()
    alone = autoencoder_stage_loss(
        pair.autoencoder,
        _pictures(),
        SEEDS,
        objective=OBJECTIVE,
        step=10,
        perceptual=PERCEPTUAL,
        last_weight=pair.autoencoder.last_weight,
        discriminator=pair.discriminator,
    )
    alone.total.backward()
    discriminator_loss(pair.discriminator, _pictures(), alone.decoded_BCHW).backward()
    apart = [p.grad for p in pair.parameters() if p.grad is not None]
    assert len(together) == len(apart) == len(list(pair.parameters()))
    torch.testing.assert_close(together, apart)


def test_discriminator_learns_nothing_during_the_warm_up() -> None:
    pair = _pair()
    losses = _losses(pair, 9)
    losses.loss_B.mean().backward()
    assert all(p.grad is None for p in pair.discriminator.parameters())
    assert not losses.parts["discriminator"].any()
    torch.testing.assert_close(losses.loss_B.detach(), losses.error_B)


def test_parts_tell_what_decoded_pictures_are_worth() -> None:
    pair = _pair()
    with torch.no_grad():
        losses = _losses(pair, 0)
        decoded_BCHW = autoencoder_stage_loss(
            pair.autoencoder,
            _pictures(),
            SEEDS,
            objective=OBJECTIVE,
            step=0,
            perceptual=PERCEPTUAL,
            last_weight=pair.autoencoder.last_weight,
        ).decoded_BCHW.clamp(-1, 1)
    assert tuple(losses.parts) == LOSS_PARTS
    assert all(part_B.shape == (2,) for part_B in losses.parts.values())
    torch.testing.assert_close(losses.parts["psnr_db"], psnr(decoded_BCHW, _pictures()))
    torch.testing.assert_close(losses.parts["ssim"], ssim(decoded_BCHW, _pictures()))


def test_names_of_the_autoencoders_parameters_are_those_of_the_model() -> None:
    pair, vae = _pair(), micro_model("base").vae
    found = autoencoder_parameters(dict(pair.named_parameters()))
    expected = dict(vae.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_discriminator_of_a_pair_comes_from_its_seed_alone() -> None:
    torch.manual_seed(5)
    first = _pair().discriminator.state_dict()
    torch.manual_seed(6)
    again = _pair().discriminator.state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())


def test_pictures_span_minus_one_to_one() -> None:
    images_BHWC = torch.tensor([0, 255]).to(torch.uint8).reshape(1, 1, 2, 1).expand(1, 8, 2, 3)
    rgb_BCHW = pictures_of(images_BHWC.numpy(), "cpu")
    assert rgb_BCHW.shape == (1, 3, 8, 2)
    assert rgb_BCHW[..., 0].eq(-1).all()
    assert rgb_BCHW[..., 1].eq(1).all()


def test_pictures_come_back_as_the_bytes_that_they_were() -> None:
    images_BHWC = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    back_BCHW = bytes_of(pictures_of(images_BHWC.numpy(), "cpu"))
    assert torch.equal(back_BCHW, images_BHWC.permute(0, 3, 1, 2))
    assert bytes_of(torch.full((1, 3, 2, 2), 1.2)).eq(255).all()


@pytest.mark.parametrize("num_layers", [2, 3, 4])
def test_smallest_picture_that_passes_has_a_patch(num_layers: int) -> None:
    network = PatchDiscriminator(num_channels=4, num_layers=num_layers)
    least = max(16, 3 * 2**num_layers)
    refuse_small_pictures([(least, 64)], num_layers=num_layers)
    with torch.no_grad():
        assert network(torch.zeros(1, 3, least, 64)).numel() > 0
    with pytest.raises(ConfigError, match=f"expected sides of at least {least} px"):
        refuse_small_pictures([(64, least - 8)], num_layers=num_layers)
