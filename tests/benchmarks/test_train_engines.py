"""The engines of the training benchmarks do what plain torch does."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.train_engines import (
    LEARNING_RATE,
    MAX_GRADIENT_NORM,
    DeepSpeedEngine,
    Engine,
    MasterEngine,
)
from sdxl_core.training.optimizers import AdamWSettings, make_adamw

NUM_STEPS, NUM_PASSES = 3, 2


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 3))


@pytest.fixture
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("DS_ACCELERATOR", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # restored afterwards
    yield
    dist.destroy_process_group()


def inputs(step: int, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + number)
    return 40 * torch.randn(4, 5, generator=generator)  # gradients long enough to be clipped


def loss_of(module: nn.Module, input_BW: Tensor) -> Tensor:
    return module(input_BW).float().square().mean()


def train(engine: Engine, dtype: torch.dtype = torch.float32) -> None:
    for step in range(NUM_STEPS):
        for number in range(NUM_PASSES):
            engine.backward(loss_of(engine.module, inputs(step, number).to(dtype)))
            engine.end_pass(is_last=number == NUM_PASSES - 1)


def test_master_weights_of_a_float32_network_go_where_plain_adamw_goes(network: nn.Module) -> None:
    plain = copy.deepcopy(network)
    optimizer = make_adamw(plain.parameters(), AdamWSettings(), learning_rate=LEARNING_RATE)
    for step in range(NUM_STEPS):
        for number in range(NUM_PASSES):
            (loss_of(plain, inputs(step, number)) / NUM_PASSES).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), MAX_GRADIENT_NORM)
        assert norm > MAX_GRADIENT_NORM
        optimizer.step()
        optimizer.zero_grad()
    train(MasterEngine(network, num_passes=NUM_PASSES))
    for found, expected in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * LEARNING_RATE)


def test_a_bfloat16_network_has_the_rounded_master_weights(network: nn.Module) -> None:
    engine = MasterEngine(network.to(torch.bfloat16), num_passes=NUM_PASSES)
    before = [master.detach().clone() for master in engine.masters]
    train(engine, torch.bfloat16)
    for weight, master, old in zip(network.parameters(), engine.masters, before, strict=True):
        assert torch.equal(weight, master.to(torch.bfloat16))
        assert not torch.equal(master, old)


def test_gradients_that_are_not_finite_change_nothing(network: nn.Module) -> None:
    engine = MasterEngine(network)
    train(engine)
    before = copy.deepcopy(network.state_dict())
    engine.backward(loss_of(network, inputs(0, 0) * float("inf")))
    engine.end_pass(is_last=True)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_deepspeed_goes_where_the_master_weights_go(network: nn.Module, group_of_one: None) -> None:
    networks = [network, copy.deepcopy(network)]
    train(
        DeepSpeedEngine(networks[0], micro_batch=4, num_passes=NUM_PASSES, stage=2), torch.bfloat16
    )
    train(MasterEngine(networks[1].to(torch.bfloat16), num_passes=NUM_PASSES), torch.bfloat16)
    for found, expected in zip(*(n.parameters() for n in networks), strict=True):
        torch.testing.assert_close(found.float(), expected.float(), rtol=1e-2, atol=1e-3)
