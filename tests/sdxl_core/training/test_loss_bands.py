"""Losses by noise level."""

import math

import pytest
import torch

from sdxl_core.contract.errors import ConfigError
from sdxl_core.training.loss_bands import LossBands


def test_read_returns_the_mean_of_each_band_and_none_for_an_empty_one() -> None:
    bands = LossBands(4)
    bands.add(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 249, 999]))
    bands.add(torch.tensor([6.0]), torch.tensor([750]))
    assert bands.read() == [2.0, None, None, 7.0]
    assert bands.read() == [None] * 4


def test_add_leaves_out_what_is_not_finite() -> None:
    bands = LossBands(1)
    bands.add(torch.tensor([2.0, math.nan, math.inf]), torch.tensor([1, 2, 3]))
    assert bands.read() == [2.0]


def test_sums_of_workers_add_up_to_those_of_one() -> None:
    loss_B, timestep_B = torch.rand(64), torch.randint(1000, (64,))
    one, first, second = LossBands(), LossBands(), LossBands()
    one.add(loss_B, timestep_B)
    first.add(loss_B[:40], timestep_B[:40])
    second.add(loss_B[40:], timestep_B[40:])
    first.sums_K2 += second.sums_K2
    assert first.read() == pytest.approx(one.read())


def test_add_never_makes_the_host_wait_for_the_device() -> None:
    bands = LossBands(device="meta")
    bands.add(torch.rand(3, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta"))
    assert bands.sums_K2.is_meta


def test_number_of_bands_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_bands: found 0"):
        LossBands(0)
