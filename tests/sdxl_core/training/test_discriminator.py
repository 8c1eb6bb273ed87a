"""The discriminator, its hinge loss, and the weight that balances gradients."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sdxl_core.training.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
)


class _Brightness(nn.Module):
    """Stands for a discriminator: a patch's number is a pixel's value times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.weight * images_BCHW


def _discriminator(num_layers: int = 2) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(num_channels=8, num_layers=num_layers)


def test_discriminator_loss_is_the_hinge_of_both_sides() -> None:
    # Numbers: real 0.5 -> 1.0 and 1.0 -> 2.0; decoded -1.0 -> -2.0 and 0.25 -> 0.5.
    real = torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1)
    decoded = torch.tensor([-1.0, 0.25]).reshape(2, 1, 1, 1)
    loss = discriminator_loss(_Brightness(), real, decoded)
    assert loss.item() == pytest.approx(0.5 * ((0.0 + 0.0) / 2 + (0.0 + 1.5) / 2))


def test_discriminator_loss_sends_no_gradient_to_the_autoencoder() -> None:
    decoded = torch.zeros(1, 3, 32, 32, requires_grad=True)
    discriminator = _discriminator()
    discriminator_loss(discriminator, torch.ones(1, 3, 32, 32), decoded).backward()
    assert decoded.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_adversarial_loss_is_minus_the_mean_and_spares_the_discriminator() -> None:
    decoded = torch.tensor([-1.0, 3.0]).reshape(2, 1, 1, 1).requires_grad_(True)
    discriminator = _Brightness()
    loss = adversarial_loss(discriminator, decoded)
    loss.backward()
    assert loss.item() == pytest.approx(-2.0)
    assert decoded.grad is not None
    assert decoded.grad.flatten().tolist() == pytest.approx([-1.0, -1.0])
    assert discriminator.weight.grad is None
    assert discriminator.weight.requires_grad


def test_adaptive_weight_makes_the_two_gradients_equally_long() -> None:
    last = nn.Parameter(torch.tensor([3.0, 4.0]))
    kept, adversarial = 6 * last.sum(), (last * torch.tensor([0.0, 0.5])).sum()
    factor = adaptive_weight(kept, adversarial, last)
    assert factor.item() == pytest.approx(6 * 2**0.5 / 0.5, rel=1e-3)
    assert not factor.requires_grad
    (together,) = torch.autograd.grad(factor * adversarial, last, retain_graph=True)
    (others,) = torch.autograd.grad(kept, last)
    assert together.norm().item() == pytest.approx(others.norm().item(), rel=1e-3)


def test_adaptive_weight_is_bounded_where_the_discriminator_says_nothing() -> None:
    last = nn.Parameter(torch.ones(2))
    assert adaptive_weight(1e6 * last.sum(), 0 * last.sum(), last).item() == 1e4


def test_patch_numbers_of_a_picture_do_not_depend_on_its_neighbours() -> None:
    discriminator = _discriminator()
    images_BCHW = torch.randn(3, 3, 40, 48)
    with torch.no_grad():
        together, alone = discriminator(images_BCHW), discriminator(images_BCHW[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_layers", "patch_px"), [(2, 34), (3, 70)])
def test_patch_is_as_wide_as_it_says(num_layers: int, patch_px: int) -> None:
    """The pixels that a number depends on, normalisation over the whole picture left aside."""
    discriminator = _discriminator(num_layers)
    for place, layer in enumerate(discriminator.layers):
        if isinstance(layer, nn.GroupNorm):
            discriminator.layers[place] = nn.Identity()
    images_BCHW = torch.randn(1, 3, 160, 160, requires_grad=True)
    numbers = discriminator(images_BCHW)
    numbers[0, 0, numbers.shape[2] // 2, numbers.shape[3] // 2].backward()
    assert images_BCHW.grad is not None
    touched_HW = images_BCHW.grad.abs().sum((0, 1)) > 0
    assert touched_HW.any(0).sum() == patch_px
    assert touched_HW.any(1).sum() == patch_px


def test_discriminator_learns_to_tell_sharp_from_blurred() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor]:
        sharp = (torch.rand(8, 3, 32, 32, generator=generator) < 0.3).float() * 2 - 1
        return sharp, nn.functional.avg_pool2d(sharp, 3, 1, 1)

    discriminator = _discriminator()
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    for _ in range(40):
        loss = discriminator_loss(discriminator, *draw())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sharp, blurred = draw()
    with torch.no_grad():
        assert discriminator(sharp).mean() > 0.5
        assert discriminator(blurred).mean() < -0.5


def test_discriminator_is_the_same_for_the_same_seed() -> None:
    first, second = _discriminator(), _discriminator()
    assert copy.deepcopy(first).state_dict().keys() == second.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
