"""Steps whose loss or gradient is not finite change nothing, and nobody waits for the device to
find out.

Whether a step is to be skipped is a number on the device, and torch's fused optimizers take such a
number (``found_inf``, made for loss scaling): where it is 1, weights, moments and step count stay
as they are. The counts live on the device as well and are read now and then.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError, JobError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkippedSteps:
    """How many steps were skipped in all, in a row up to now, and in the longest row."""

    num_skipped: int
    num_in_a_row: int
    longest_row: int


class StepGuard:
    """Judges steps, counts those to skip, and stops a training that makes no more progress.

    All workers must come to the same verdict: judge values that are the same on all of them, such
    as the norm of the whole gradient.
    """

    def __init__(self, *, most_in_a_row: int = 20, device: torch.device | str = "cpu") -> None:
        """Starts with nothing skipped.

        Args:
            most_in_a_row: so many skipped steps in a row stop the training.
            device: of the values that are judged.

        Raises:
            ConfigError: ``most_in_a_row`` is below 1.
        """
        if most_in_a_row < 1:
            raise ConfigError(f"most_in_a_row: found {most_in_a_row}, expected 1 step or more")
        self.most_in_a_row = most_in_a_row
        # In the order of SkippedSteps.
        self._counts_3 = torch.zeros(3, dtype=torch.int64, device=device)

    @torch.no_grad()
    def judge(self, *values: Tensor) -> Tensor:
        """Returns 1.0 if a value is not finite, 0.0 otherwise, as a 0-d float32 tensor on the
        device, and counts it."""
        finite = torch.stack([value.detach().isfinite().all() for value in values]).all()
        bad = finite.logical_not()
        num_skipped, num_in_a_row, longest_row = self._counts_3.unbind()
        num_skipped.add_(bad)
        num_in_a_row.add_(1).mul_(bad)
        longest_row.copy_(torch.maximum(longest_row, num_in_a_row))
        return bad.float()

    def read(self) -> SkippedSteps:
        """Returns the counts. Waits for the device: not for every step."""
        num_skipped, num_in_a_row, longest_row = self._counts_3.tolist()
        return SkippedSteps(
            num_skipped=num_skipped, num_in_a_row=num_in_a_row, longest_row=longest_row
        )

    def check(self) -> SkippedSteps:
        """Returns the counts, like ``read``.

        Raises:
            JobError: too many steps in a row were skipped since the start or the resume.
        """
        skipped = self.read()
        if skipped.longest_row >= self.most_in_a_row:
            raise JobError(
                f"training: found {skipped.longest_row} steps in a row whose loss or gradient is "
                f"not finite ({skipped.num_skipped} in all), expected fewer than "
                f"{self.most_in_a_row}; resume from an earlier checkpoint with a lower learning "
                "rate or a longer warm-up, and look at the samples of these steps"
            )
        return skipped

    def state_dict(self) -> dict[str, int]:
        """The counts that go on after a resume. Waits for the device."""
        skipped = self.read()
        return {"num_skipped": skipped.num_skipped, "num_in_a_row": skipped.num_in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on counting where ``state_dict`` left off."""
        row = state["num_in_a_row"]
        counts = [state["num_skipped"], row, row]
        self._counts_3.copy_(torch.tensor(counts, dtype=torch.int64))


@contextlib.contextmanager
def skipped_if(bad: Tensor, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Makes the optimizer's steps inside change nothing where ``bad`` is 1.0.

    Args:
        bad: from ``StepGuard.judge``.
        optimizer: a fused one, such as ``optimizers.make_adamw`` makes; a launcher's wrapper has
            one inside.

    Raises:
        ConfigError: the optimizer is not fused and would ignore ``bad``.
    """
    if not all(group.get("fused") for group in optimizer.param_groups):
        raise ConfigError(
            f"optimizer: found {type(optimizer).__name__} without fused=True, expected a fused "
            "one; others cannot skip a step without waiting for the device"
        )
    optimizer.found_inf = bad  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def guarded_step(
    parameters: Iterable[Tensor],
    optimizer: torch.optim.Optimizer,
    guard: StepGuard,
    *,
    loss: Tensor,
    max_gradient_norm: float = 1.0,
) -> Tensor:
    """Clips the gradients together and updates the parameters, unless loss or norm is not finite.

    Args:
        parameters: with their gradients; the caller clears these afterwards.
        optimizer: a fused one.
        guard: counts what is skipped.
        loss: of the step, any shape.
        max_gradient_norm: gradients are scaled down to this norm.

    Returns:
        The norm before clipping, a 0-d tensor on the device.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    with skipped_if(guard.judge(loss, norm), optimizer):
        optimizer.step()
    return norm
