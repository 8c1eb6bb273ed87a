"""AdamW and its learning rate."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from sdxl_core.contract.errors import ConfigError

# Kinds of devices that torch has a fused AdamW for which can skip a step by itself.
_FUSED_DEVICES = {"cpu", "cuda"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """AdamW (arXiv:1711.05101). SDXL's optimizer is not published; these are the defaults of
    diffusers' training script."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas: found {self.betas}, expected two numbers, 0 <= beta < 1")
        for name in ("weight_decay", "eps"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected 0 or more")


def learning_rate_of_group(group: Mapping[str, Any], learning_rate: float, *, step: int) -> float:
    """The learning rate of a parameter group of ``make_adamw`` in step ``step``, counted from 0.

    0 before the group's first step: neither gradients, which are 0, nor the decay move it then.
    """
    return learning_rate if step >= group.get("first_step", 0) else 0.0


def make_adamw(
    parameters: Iterable[nn.Parameter],
    settings: AdamWSettings,
    *,
    learning_rate: float,
    late: Iterable[nn.Parameter] = (),
    first_late_step: int = 0,
) -> torch.optim.AdamW:
    """Returns AdamW over the parameters that are trained, fused where torch has that.

    Args:
        parameters: those that need no gradient are left out.
        settings: the optimizer's constants.
        learning_rate: the first; see ``LearningRate``.
        late: those of a group of their own, which ``learning_rate_of_group`` holds still at first.
        first_late_step: the step, counted from 0, in which they begin to move.

    Raises:
        ConfigError: nothing is left to train.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ConfigError(
            "optimizer: found no parameter that needs a gradient, expected at least one; "
            "is the whole network frozen?"
        )
    optimizer = torch.optim.AdamW(
        trained,
        learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        eps=settings.eps,
        fused=all(parameter.device.type in _FUSED_DEVICES for parameter in trained),
    )
    if waiting := [parameter for parameter in late if parameter.requires_grad]:
        optimizer.add_param_group({"params": waiting, "first_step": first_late_step})
    return optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up, then constant or half a cosine down to a floor; a function of the step."""

    peak: float
    num_warmup_steps: int = 0
    after: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up."""
    num_steps: int | None = None
    """Length of the whole training; the cosine needs it."""
    floor: float = 0.0
    """Where the cosine ends, as a share of the peak."""

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise ConfigError(f"learning_rate: found {self.peak}, expected more than 0")
        if self.num_warmup_steps < 0:
            raise ConfigError(
                f"num_warmup_steps: found {self.num_warmup_steps}, expected 0 or more"
            )
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"floor: found {self.floor}, expected a share of the peak, 0 to 1")
        if self.after == "cosine" and (self.num_steps or 0) <= self.num_warmup_steps:
            raise ConfigError(
                f"num_steps: found {self.num_steps} with a warm-up of {self.num_warmup_steps} "
                "steps and a cosine after it, expected more steps than the warm-up has"
            )

    def at(self, step: int) -> float:
        """Returns the learning rate of step ``step``, counted from 0.

        The warm-up's first step has ``peak / num_warmup_steps`` and its last the peak, so that no
        step is made for nothing.
        """
        if step < self.num_warmup_steps:
            return self.peak * (step + 1) / self.num_warmup_steps
        if self.after == "constant" or self.num_steps is None:
            return self.peak
        progress = (step - self.num_warmup_steps) / (self.num_steps - self.num_warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.peak * (self.floor + (1 - self.floor) * cosine)
