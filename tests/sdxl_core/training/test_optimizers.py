"""AdamW and its learning rate."""

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.training.optimizers import (
    AdamWSettings,
    LearningRate,
    learning_rate_of_group,
    make_adamw,
)


def _of_diffusers(name: str, num_warmup_steps: int, num_steps: int) -> list[float]:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=2.0)
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_steps
    )
    rates = []
    for _ in range(num_steps + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("after", ["constant", "cosine"])
def test_learning_rate_agrees_with_that_of_diffusers(after: str) -> None:
    name = "constant_with_warmup" if after == "constant" else after
    expected = _of_diffusers(name, 10, 50)
    rate = LearningRate(peak=2.0, num_warmup_steps=10, after=after, num_steps=50)  # type: ignore[arg-type]
    # Theirs starts at 0 and reaches the peak one step later.
    assert [rate.at(step) for step in range(10)] == pytest.approx(expected[1:11])
    assert [rate.at(step) for step in range(10, 51)] == pytest.approx(expected[10:])


def test_learning_rate_never_is_zero_before_the_end_and_ends_at_the_floor() -> None:
    rate = LearningRate(peak=1.0, num_warmup_steps=3, after="cosine", num_steps=9, floor=0.1)
    assert all(rate.at(step) > 0.1 for step in range(9))
    assert rate.at(9) == pytest.approx(0.1)
    assert rate.at(1000) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peak": 0.0}, "learning_rate: found 0"),
        ({"peak": 1.0, "num_warmup_steps": -1}, "num_warmup_steps: found -1"),
        ({"peak": 1.0, "floor": 2.0}, "floor: found 2"),
        ({"peak": 1.0, "after": "cosine"}, "num_steps: found None"),
        (
            {"peak": 1.0, "after": "cosine", "num_steps": 5, "num_warmup_steps": 5},
            "expected more steps than the warm-up",
        ),
    ],
)
def test_learning_rate_that_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LearningRate(**settings)  # type: ignore[arg-type]


def test_make_adamw_trains_only_what_needs_a_gradient_and_is_fused() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    optimizer = make_adamw(module.parameters(), AdamWSettings(), learning_rate=0.1)
    assert [group["params"] for group in optimizer.param_groups] == [[module.weight]]
    assert optimizer.defaults["fused"]
    assert optimizer.defaults["lr"] == 0.1


def test_make_adamw_with_nothing_to_train_is_refused() -> None:
    module = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="is the whole network frozen"):
        make_adamw(module.parameters(), AdamWSettings(), learning_rate=0.1)


def test_late_parameters_stand_still_before_their_step_in_spite_of_weight_decay() -> None:
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    settings = AdamWSettings(weight_decay=0.5)
    optimizer = make_adamw([early], settings, learning_rate=0.1, late=[late], first_late_step=2)
    seen = []
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_of_group(group, 0.1, step=step)
        early.grad = late.grad = torch.zeros(3)
        optimizer.step()
        seen.append((round(early[0].item(), 6), round(late[0].item(), 6)))
    # Without gradients, decay alone is left: a factor of 1 - 0.1 * 0.5.
    assert seen == [(0.95, 1.0), (0.9025, 1.0), (0.857375, 0.95), (0.814506, 0.9025)]


def test_adamw_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="betas"):
        AdamWSettings(betas=(0.9, 1.0))
    with pytest.raises(ConfigError, match="weight_decay: found -1"):
        AdamWSettings(weight_decay=-1.0)
