"""One optimisation step and the learning-rate curve."""

import math

import pytest
import torch
from torch import nn

from sdxl_core.training.step import learning_rate_at, set_learning_rate, train_step


def test_train_step_moves_against_the_gradient() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 3.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    result = train_step(
        module, optimizer, lambda: module.weight.square().sum(), max_gradient_norm=100.0
    )
    assert result.loss == pytest.approx(9.0)
    assert result.gradient_norm == pytest.approx(6.0)
    assert module.weight.item() == pytest.approx(3.0 - 0.1 * 6.0)


def test_train_step_clips_to_the_largest_norm() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 3.0)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    train_step(module, optimizer, lambda: module.weight.square().sum(), max_gradient_norm=1.0)
    assert module.weight.item() == pytest.approx(2.0, abs=1e-4)


def test_train_step_with_a_loss_that_is_not_finite_changes_nothing() -> None:
    module = nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1.0)
    result = train_step(module, optimizer, lambda: module.weight.sum() * math.inf)
    assert not math.isfinite(result.gradient_norm)
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


def test_learning_rate_rises_to_the_peak_and_falls_to_the_floor() -> None:
    assert learning_rate_at(0.0, peak=1.0, warmup=0.1) == 0.0
    assert learning_rate_at(0.05, peak=1.0, warmup=0.1) == pytest.approx(0.5)
    assert learning_rate_at(0.1, peak=1.0, warmup=0.1) == pytest.approx(1.0)
    assert learning_rate_at(1.0, peak=1.0, floor=0.02) == pytest.approx(0.02)


def test_set_learning_rate_reaches_every_group() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(
        [{"params": first.parameters()}, {"params": second.parameters()}], lr=1.0
    )
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
