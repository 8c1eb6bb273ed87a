"""An exponential moving average of weights: the copy that is sampled from and shipped."""

import torch
from torch import Tensor, nn


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
