"""A plain training loop on one process: steps, learning rate, average, log lines and a state to
resume from."""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdxl_core.training.ema import WeightAverage
from sdxl_core.training.step import learning_rate_at, set_learning_rate, train_step

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and how fast one network is trained."""

    num_steps: int
    peak_learning_rate: float
    ema_decay: float = 0.998
    warmup: float = 0.02
    autocast_dtype: torch.dtype | None = torch.bfloat16
    log_every: int = 50
    save_every: int = 250


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Writes a torch state so that ``path`` is always a whole file."""
    passing = path.with_suffix(".tmp")
    torch.save(state, passing)
    passing.rename(path)


def train(
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    *,
    settings: LoopSettings,
    state_path: Path,
) -> WeightAverage:
    """Trains ``module`` for ``settings.num_steps`` and returns the average of its weights.

    Args:
        module: trained in place; ends with its last weights, the average holds the ones to use.
        loss_at: the scalar loss of a step. It draws its batch from torch's global generator, whose
            state is part of what is saved.
        settings: the loop's settings.
        state_path: where weights, optimizer, average and random state are kept. If the file
            exists, training goes on from it; a finished training returns at once.
    """
    optimizer = _optimizer(module, settings)
    average = WeightAverage(module, decay=settings.ema_decay)
    step = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"])
        step = state["step"]
        logger.info("%s: goes on from step %d", state_path.name, step)
    module.train()
    start_s, mean_loss = time.monotonic(), None
    while step < settings.num_steps:
        set_learning_rate(
            optimizer,
            learning_rate_at(
                (step + 1) / settings.num_steps,
                peak=settings.peak_learning_rate,
                warmup=settings.warmup,
            ),
        )
        result = train_step(
            module,
            optimizer,
            functools.partial(loss_at, step),
            autocast_dtype=settings.autocast_dtype,
        )
        average.update(module)
        step += 1
        mean_loss = result.loss if mean_loss is None else 0.98 * mean_loss + 0.02 * result.loss
        if step % settings.log_every == 0:
            seconds = time.monotonic() - start_s
            logger.info("%s: step %d loss %.4f %.0f s", state_path.stem, step, mean_loss, seconds)
        if step % settings.save_every == 0 or step == settings.num_steps:
            save_atomically(_state(module, optimizer, average, step), state_path)
    module.eval()
    return average


def _optimizer(module: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        module.parameters(),
        settings.peak_learning_rate,
        betas=(0.9, 0.99),
        weight_decay=1e-3,
        fused=True,
    )


def _state(
    module: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage, step: int
) -> dict[str, object]:
    """All that a training needs to go on as if it had not stopped."""
    return {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict(),
        "random": torch.get_rng_state(),
        "step": step,
    }
