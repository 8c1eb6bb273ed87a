"""An exponential moving average of weights: the copy that is sampled from and shipped."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError


class WeightAverage:
    """Float32 running mean of a module's parameters and buffers.

    The effective decay grows with the number of updates, ``min(decay, (1 + n) / (10 + n))``, so
    that a short run's average is not held back by its random start.
    """

    def __init__(self, module: nn.Module, *, decay: float = 0.999) -> None:
        self.decay = decay
        self.num_updates = 0
        self.shadow = {
            name: tensor.detach().float().clone() for name, tensor in module.state_dict().items()
        }

    def current_decay(self) -> float:
        """The decay that the next update uses."""
        return min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the average towards the module's weights."""
        weight = 1.0 - self.current_decay()
        for name, tensor in module.state_dict().items():
            self.shadow[name].lerp_(tensor.detach().float(), weight)
        self.num_updates += 1

    def copy_to(self, module: nn.Module) -> None:
        """Loads the average into a module of the same structure, in the module's own dtypes."""
        module.load_state_dict(self.shadow)

    def state_dict(self) -> dict[str, Tensor | int | float]:
        """Everything that a resume needs, as tensors and plain numbers."""
        return {"decay": self.decay, "num_updates": self.num_updates, **self.shadow}

    def load_state_dict(self, state: dict[str, Tensor | int | float]) -> None:
        """Takes up the average where ``state_dict`` left it."""
        self.decay = float(state["decay"])
        self.num_updates = int(state["num_updates"])
        for name, tensor in self.shadow.items():
            saved = state[name]
            assert isinstance(saved, Tensor)
            tensor.copy_(saved)


class FlatAverage:
    """Float32 running mean of a list of tensors: what one worker holds of a sharded model.

    The tensors are the worker's flat partitions of the float32 weights, or any other list whose
    order and shapes stay the same. Nothing is exchanged between workers, and nothing waits for the
    device.

    The decay of step ``n`` (from 0) is ``min(decay, (1 + n) / (10 + n))``. With ``every`` above 1
    the mean is brought up to date every so many steps only, and then moves as if the weights had
    been the latest in all of these steps.
    """

    def __init__(
        self,
        flats: Sequence[Tensor],
        *,
        decay: float = 0.9999,
        every: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        """Starts from the tensors as they are.

        Args:
            flats: the worker's tensors, of any dtype.
            decay: share of the mean that a step keeps, 0 to 1, once many steps are done.
            every: steps from one update to the next.
            device: where the mean is kept; None is where the tensors are. "cpu" saves the device's
                memory and costs a copy that the host waits for on every update.

        Raises:
            ConfigError: ``decay`` or ``every`` is out of range.
        """
        if not 0 <= decay < 1:
            raise ConfigError(f"ema decay: found {decay}, expected 0 <= decay < 1, such as 0.9999")
        if every < 1:
            raise ConfigError(f"ema every: found {every}, expected 1 step or more")
        self.decay, self.every, self.num_steps = decay, every, 0
        self.shadows = [
            flat.detach().to(device=device, dtype=torch.float32, copy=True) for flat in flats
        ]

    def _decay_at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, flats: Sequence[Tensor]) -> None:
        """Counts a step and, if it is time, moves the mean towards the tensors."""
        self.num_steps += 1
        if self.num_steps % self.every:
            return
        since = range(self.num_steps - self.every, self.num_steps)
        weight = 1.0 - math.prod(self._decay_at(step) for step in since)
        for shadow, flat in zip(self.shadows, flats, strict=True):
            shadow.lerp_(flat.detach().to(device=shadow.device, dtype=torch.float32), weight)

    @contextlib.contextmanager
    def in_place_of(self, flats: Sequence[Tensor]) -> Iterator[None]:
        """Puts the mean into the tensors for a while, to save or to sample from it.

        Afterwards the tensors have their own values again, bit for bit; whatever is changed in them
        meanwhile is lost. It takes the memory of one more copy.
        """
        with torch.no_grad():
            own = [flat.detach().clone() for flat in flats]
            for flat, shadow in zip(flats, self.shadows, strict=True):
                flat.copy_(shadow)
        try:
            yield
        finally:
            with torch.no_grad():
                for flat, values in zip(flats, own, strict=True):
                    flat.copy_(values)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs: ``num_steps`` and the tensors ``shadows``."""
        return {"num_steps": self.num_steps, "shadows": self.shadows}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the mean where ``state_dict`` left it; the settings are those of this object."""
        for shadow, saved in zip(self.shadows, state["shadows"], strict=True):
            shadow.copy_(saved)
        self.num_steps = int(state["num_steps"])
