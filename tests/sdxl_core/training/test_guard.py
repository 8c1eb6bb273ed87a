"""Steps that must not change anything, found out about on the device."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sdxl_core.contract.errors import ConfigError, JobError
from sdxl_core.training.guard import StepGuard, guarded_step, skipped_if
from sdxl_core.training.optimizers import AdamWSettings, make_adamw

INPUTS = torch.randn(20, 8, 3, generator=torch.Generator().manual_seed(0))


def _start() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    settings = AdamWSettings(weight_decay=0.1)
    return module, make_adamw(module.parameters(), settings, learning_rate=0.01)


def _train(
    module: nn.Linear,
    optimizer: torch.optim.AdamW,
    guard: StepGuard,
    inputs: Tensor,
    factors: list[float],
) -> None:
    for input_BI, factor in zip(inputs, factors, strict=True):
        loss = module(input_BI).square().mean() * factor
        loss.backward()
        guarded_step(module.parameters(), optimizer, guard, loss=loss, max_gradient_norm=0.5)
        optimizer.zero_grad(set_to_none=True)


def _state(module: nn.Linear, optimizer: torch.optim.AdamW) -> list[Tensor]:
    moments = [state[name] for state in optimizer.state.values() for name in sorted(state)]
    return [tensor.detach().clone() for tensor in (*module.parameters(), *moments)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_run_with_bad_steps_ends_bit_for_bit_as_one_without_them(bad: float) -> None:
    module, optimizer = _start()
    _train(module, optimizer, StepGuard(), INPUTS[:5], [1.0] * 5)
    expected = _state(module, optimizer)

    module, optimizer = _start()
    guard = StepGuard()
    mixed = INPUTS[[0, 9, 1, 2, 8, 7, 3, 4]]
    _train(module, optimizer, guard, mixed, [1.0, bad, 1.0, 1.0, bad, bad, 1.0, 1.0])
    found = _state(module, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    skipped = guard.read()
    assert (skipped.num_skipped, skipped.num_in_a_row, skipped.longest_row) == (3, 0, 2)


def test_step_that_is_fine_is_that_of_torch_with_clipping() -> None:
    module, optimizer = _start()
    other, plain = copy.deepcopy(module), None
    plain = torch.optim.AdamW(other.parameters(), 0.01, weight_decay=0.1)
    for input_BI in INPUTS[:4]:
        _train(module, optimizer, StepGuard(), input_BI[None], [1.0])
        other(input_BI).square().mean().backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        plain.step()
        plain.zero_grad()
    torch.testing.assert_close(module.weight, other.weight)


def test_guarded_step_returns_the_norm_before_clipping() -> None:
    module, optimizer = _start()
    loss = module(INPUTS[0]).square().mean() * 100
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in module.parameters()]).norm()
    norm = guarded_step(module.parameters(), optimizer, StepGuard(), loss=loss)
    torch.testing.assert_close(norm, expected)


def test_finite_gradient_of_a_loss_that_is_not_finite_is_skipped_too() -> None:
    module, optimizer = _start()
    before = module.weight.detach().clone()
    module(INPUTS[0]).mean().backward()
    guarded_step(module.parameters(), optimizer, StepGuard(), loss=torch.tensor(math.nan))
    assert torch.equal(module.weight, before)


def test_judge_says_the_same_for_each_kind_of_value() -> None:
    guard = StepGuard()
    fine, bad = torch.ones(3), torch.tensor([1.0, math.inf])
    assert guard.judge(fine).item() == 0.0
    assert guard.judge(fine, bad.bfloat16()).item() == 1.0
    assert guard.judge(torch.tensor(math.nan)).item() == 1.0
    assert guard.read().num_in_a_row == 2


def test_check_stops_after_so_many_in_a_row_even_if_it_went_on_well() -> None:
    guard = StepGuard(most_in_a_row=3)
    for value in (1.0, math.nan, math.nan, 1.0, math.nan):
        guard.judge(torch.tensor(value))
    assert guard.check().num_skipped == 3
    for value in (math.nan, math.nan, 1.0):
        guard.judge(torch.tensor(value))
    with pytest.raises(JobError, match=r"found 3 steps in a row.*5 in all"):
        guard.check()


def test_counts_go_on_after_a_resume() -> None:
    guard, resumed = StepGuard(), StepGuard(most_in_a_row=3)
    for value in (math.nan, 1.0, math.nan, math.nan):
        guard.judge(torch.tensor(value))
    resumed.load_state_dict(guard.state_dict())
    resumed.check()
    resumed.judge(torch.tensor(math.nan))
    with pytest.raises(JobError, match="4 in all"):
        resumed.check()


def test_judge_never_makes_the_host_wait_for_the_device() -> None:
    """Tensors of the meta device have no values, so looking at one is an error."""
    guard = StepGuard(device="meta")
    assert guard.judge(torch.ones((), device="meta")).is_meta


def test_guarded_step_never_makes_the_host_wait_for_the_device() -> None:
    """Fake tensors have no values either, and torch's fused optimizers know them."""
    with FakeTensorMode():
        module, optimizer = _start()
        loss = module(torch.ones(2, 3)).mean()
        loss.backward()
        norm = guarded_step(module.parameters(), optimizer, StepGuard(), loss=loss)
        with pytest.raises(DataDependentOutputException):
            norm.item()


def test_skipped_if_ends_with_the_block() -> None:
    module, optimizer = _start()
    module(INPUTS[0]).mean().backward()
    before = module.weight.detach().clone()
    with skipped_if(torch.ones(()), optimizer):
        optimizer.step()
    assert torch.equal(module.weight, before)
    optimizer.step()
    assert not torch.equal(module.weight, before)


def test_skipped_if_refuses_an_optimizer_that_would_not_listen() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with (
        pytest.raises(ConfigError, match="found SGD without fused"),
        skipped_if(torch.ones(()), optimizer),
    ):
        pass


def test_guard_that_allows_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="most_in_a_row: found 0"):
        StepGuard(most_in_a_row=0)
