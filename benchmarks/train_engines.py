"""What takes gradients and updates weights in the benchmarks of training, without a launcher.

``MasterEngine`` is plain torch: a network in bfloat16 whose weights, gradients and moments the
optimizer has in float32. ``DeepSpeedEngine`` is DeepSpeed around the same network and optimizer,
set up as the product does it, in a process group of one.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdxl_core.training.ema import FlatAverage
from sdxl_core.training.guard import StepGuard, skipped_if
from sdxl_core.training.optimizers import AdamWSettings, make_adamw

LEARNING_RATE = 1e-5
MAX_GRADIENT_NORM = 1.0


class Engine(Protocol):
    """One network and its optimizer."""

    num_passes: int

    @property
    def module(self) -> Any:
        """What to call in place of the network."""

    def backward(self, loss: Tensor) -> None:
        """Takes the gradients of one forward pass; ``loss`` is the mean of its samples."""

    def end_pass(self, *, is_last: bool) -> None:
        """After the last of ``num_passes`` passes: clips and updates the weights."""

    def drop_gradients(self) -> None:
        """Forgets passes whose step will not come."""


class MasterEngine:
    """Weights, gradients and moments in float32 beside a network of any precision.

    Gradients are added up in float32 as they come, so that a network in bfloat16 loses nothing over
    many passes, and none of them stays in the network. Clipping happens inside the fused optimizer
    (its divisor for loss scaling): no pass over the gradients but that of their norm, and the host
    never waits.

    Args:
        network: is trained; its weights are those of its precision nearest to the float32 ones.
        num_passes: forward passes of a step.
        ema_decay: keeps a running mean of the float32 weights; None: none.
    """

    def __init__(
        self, network: nn.Module, *, num_passes: int = 1, ema_decay: float | None = None
    ) -> None:
        self.module = network
        self.num_passes = num_passes
        self._weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.masters = [
            nn.Parameter(weight.detach().to(torch.float32, copy=True)) for weight in self._weights
        ]
        self._optimizer: Any = make_adamw(
            self.masters, AdamWSettings(), learning_rate=LEARNING_RATE
        )
        device = self._weights[0].device
        self._guard = StepGuard(device=device)
        self._average = None
        if ema_decay is not None:
            self._average = FlatAverage(self.masters, decay=ema_decay)
        self._hooks = [
            weight.register_post_accumulate_grad_hook(_adder(master))
            for weight, master in zip(self._weights, self.masters, strict=True)
        ]

    def backward(self, loss: Tensor) -> None:
        """See ``Engine``."""
        (loss / self.num_passes).backward()

    @torch.no_grad()
    def end_pass(self, *, is_last: bool) -> None:
        """See ``Engine``."""
        if not is_last:
            return
        gradients = [master.grad for master in self.masters if master.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._optimizer.grad_scale = (norm / MAX_GRADIENT_NORM).clamp(min=1.0)
        with skipped_if(self._guard.judge(norm), self._optimizer):
            self._optimizer.step()
        self._optimizer.zero_grad()
        torch._foreach_copy_(self._weights, self.masters)
        if self._average is not None:
            self._average.update(self.masters)

    def drop_gradients(self) -> None:
        """See ``Engine``."""
        for tensor in (*self.masters, *self._weights):
            tensor.grad = None

    def close(self) -> None:
        """Lets the network go."""
        for hook in self._hooks:
            hook.remove()


def _adder(master: nn.Parameter) -> Callable[[Tensor], None]:
    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.to(torch.float32)
        else:
            master.grad.add_(weight.grad)
        weight.grad = None

    return add


class DeepSpeedEngine:
    """DeepSpeed ZeRO in this process alone.

    Args:
        network: with float32 weights; is trained, in bfloat16.
        micro_batch: samples of a forward pass.
        num_passes: forward passes of a step.
        stage: of ZeRO, 1 or 2.
    """

    def __init__(
        self, network: nn.Module, *, micro_batch: int, num_passes: int, stage: int
    ) -> None:
        device = next(network.parameters()).device
        join_group_of_one(device)
        import deepspeed  # late: it reads DS_ACCELERATOR and looks for compilers and devices

        if device.type == "cpu":  # not needed, and would be compiled now
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.num_passes = num_passes
        self.module, *_ = deepspeed.initialize(
            model=network,
            optimizer=make_adamw(
                network.parameters(), AdamWSettings(), learning_rate=LEARNING_RATE
            ),
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": num_passes,
                "train_batch_size": micro_batch * num_passes,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "bf16": {"enabled": True},
                "gradient_clipping": MAX_GRADIENT_NORM,
                "steps_per_print": 1 << 62,
            },
            dist_init_required=False,
        )

    def backward(self, loss: Tensor) -> None:
        """See ``Engine``."""
        self.module.backward(loss)

    def end_pass(self, *, is_last: bool) -> None:
        """See ``Engine``. DeepSpeed counts the passes itself."""
        self.module.step()

    def drop_gradients(self) -> None:
        """See ``Engine``."""
        self.module.zero_grad()


def join_group_of_one(device: torch.device) -> None:
    """The process group that DeepSpeed asks for."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.HashStore(),
            rank=0,
            world_size=1,
        )
