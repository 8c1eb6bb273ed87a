"""The plain training loop: it learns, and it goes on where it stopped."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from sdxl_core.training.loop import LoopSettings, train

SETTINGS = LoopSettings(
    num_steps=40, peak_learning_rate=0.05, ema_decay=0.9, autocast_dtype=None, save_every=10
)


class _Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def loss(self, _: int) -> Tensor:
        x = torch.rand(16, 1)
        return (self.linear(x) - (2 * x + 1)).square().mean()


def _trained(tmp_path: Path, settings: LoopSettings) -> tuple[_Line, dict[str, Tensor]]:
    module = _Line()
    average = train(module, module.loss, settings=settings, state_path=tmp_path / "line.pt")
    return module, average.shadow


def test_train_lowers_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, _ = _trained(tmp_path, dataclasses.replace(SETTINGS, num_steps=200))
    assert module.loss(0) < 0.1


def test_train_stopped_and_resumed_gives_the_same_weights(tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    straight.mkdir()
    resumed.mkdir()
    torch.manual_seed(0)
    expected, expected_average = _trained(straight, SETTINGS)

    class _StopError(Exception):
        pass

    def stopping(module: _Line, step: int) -> Tensor:
        if step == 27:
            raise _StopError
        return module.loss(step)

    torch.manual_seed(0)
    module = _Line()
    try:
        train(
            module,
            lambda step: stopping(module, step),
            settings=SETTINGS,
            state_path=resumed / "line.pt",
        )
    except _StopError:
        torch.manual_seed(99)
    got, got_average = _trained(resumed, SETTINGS)
    assert torch.equal(got.linear.weight, expected.linear.weight)
    assert all(torch.equal(got_average[name], expected_average[name]) for name in got_average)


def test_train_finished_training_takes_no_further_step(tmp_path: Path) -> None:
    _trained(tmp_path, SETTINGS)

    def never(_: int) -> Tensor:
        raise AssertionError("a finished training asked for a loss")

    train(_Line(), never, settings=SETTINGS, state_path=tmp_path / "line.pt")
