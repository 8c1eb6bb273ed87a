"""The running mean of weights."""

import pytest
import torch
from torch import nn

from sdxl_core.training.ema import WeightAverage


def _filled(value: float) -> nn.Linear:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def test_update_of_constant_weights_changes_nothing() -> None:
    average = WeightAverage(_filled(2.0))
    for _ in range(5):
        average.update(_filled(2.0))
    assert torch.equal(average.shadow["weight"], torch.full((2, 3), 2.0))


def test_update_follows_the_written_recursion() -> None:
    average = WeightAverage(_filled(0.0), decay=0.5)
    expected = 0.0
    for i in range(30):
        decay = min(0.5, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * float(i)
        average.update(_filled(float(i)))
    assert average.shadow["bias"][0].item() == pytest.approx(expected, rel=1e-5)


def test_update_early_average_forgets_its_start() -> None:
    average = WeightAverage(_filled(100.0), decay=0.9999)
    for _ in range(50):
        average.update(_filled(0.0))
    assert average.shadow["weight"].abs().max() < 0.01


def test_load_state_dict_resumes_bit_for_bit() -> None:
    straight = WeightAverage(_filled(0.0))
    stopped = WeightAverage(_filled(0.0))
    for i in range(3):
        straight.update(_filled(float(i)))
        stopped.update(_filled(float(i)))
    resumed = WeightAverage(_filled(9.0))
    resumed.load_state_dict(stopped.state_dict())
    straight.update(_filled(7.0))
    resumed.update(_filled(7.0))
    assert torch.equal(straight.shadow["weight"], resumed.shadow["weight"])


def test_copy_to_keeps_the_dtype_of_the_module() -> None:
    module = _filled(0.0).half()
    average = WeightAverage(_filled(1.5))
    average.copy_to(module)
    assert module.weight.dtype == torch.float16
    assert (module.weight == 1.5).all()
