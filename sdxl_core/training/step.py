"""One optimisation step, with no launcher around it."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """Loss and gradient norm (before clipping) of one step, plain numbers."""

    loss: float
    gradient_norm: float


def learning_rate_at(
    progress: float, *, peak: float, warmup: float = 0.02, floor: float = 0.02
) -> float:
    """Linear warm-up, then a cosine down to ``floor * peak``.

    Args:
        progress: share of the training that is done, 0 to 1.
        peak: highest learning rate.
        warmup: share of the training spent on the warm-up.
        floor: last learning rate as a share of ``peak``.
    """
    if progress < warmup:
        return peak * progress / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))
    return peak * (floor + (1 - floor) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Gives every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def train_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_function: Callable[[], Tensor],
    *,
    autocast_dtype: torch.dtype | None = None,
    max_gradient_norm: float = 1.0,
) -> StepResult:
    """Computes the loss, its gradients, clips them and updates the parameters.

    A loss that is not finite changes nothing: the gradients are thrown away and the result tells.

    Args:
        module: its parameters are clipped together.
        optimizer: updates them.
        loss_function: returns a scalar; called once.
        autocast_dtype: precision of the forward pass (bfloat16 in training); None leaves it alone.
        max_gradient_norm: gradients are scaled down to this norm.
    """
    device_type = next(module.parameters()).device.type
    with torch.autocast(device_type, autocast_dtype, enabled=autocast_dtype is not None):
        loss = loss_function()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(module.parameters(), max_gradient_norm))
    if math.isfinite(norm):
        optimizer.step()
    else:
        optimizer.zero_grad(set_to_none=True)
    return StepResult(loss=float(loss.detach()), gradient_norm=norm)
