"""DeepSpeed ZeRO as this project uses it: an engine around a network, and its state in pieces.

The launcher has made the process group. DeepSpeed shards gradients, optimizer and, at stage 3, the
weights over all workers; where a worker's share of each parameter lies is asked of DeepSpeed, and
state goes in and out in terms of parameters (``sdxl_core.training.pieces``). So a checkpoint holds
no DeepSpeed files: it is read without DeepSpeed, by workers of any number and at any stage, and
nothing in it is unpickled.
"""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.zero_places import places_of
from sdxl_core.training.ema import FlatAverage
from sdxl_core.training.optimizers import (
    AdamWSettings,
    learning_rate_of_group,
    make_adamw,
)
from sdxl_core.training.pieces import Piece, PieceReader

Precision = Literal["bfloat16", "float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroSettings:
    """How the state is spread over the workers.

    Args:
        stage: 1 shards the optimizer, 2 gradients too, 3 weights too.
        offload_optimizer: keep the optimizer's state in the memory of the host.
        precision: of weights and gradients in the network; the optimizer's weights are float32.
        micro_batch_size: rows of one forward pass; with area-scaled batches of the largest bucket.
        num_accumulated: forward passes of a worker before an optimizer step.
        max_gradient_norm: gradients are scaled down to this norm.
        learning_rate: at the beginning; see ``set_learning_rate``.
        adamw: the optimizer's constants.
        ema_decay: most of the running mean of the weights that an update keeps.
        late_prefix: parameters whose names begin so stand still before ``first_late_step``, weight
            decay included; "" for none.
        first_late_step: counted from 0.
    """

    stage: int
    offload_optimizer: bool
    precision: Precision
    micro_batch_size: int
    num_accumulated: int
    max_gradient_norm: float
    learning_rate: float
    adamw: AdamWSettings
    ema_decay: float
    late_prefix: str = ""
    first_late_step: int = 0


def deepspeed_config(settings: ZeroSettings, world_size: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for these settings."""
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    micro = settings.micro_batch_size
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": settings.num_accumulated,
        "train_batch_size": micro * settings.num_accumulated * world_size,
        "zero_optimization": zero,
        # torch's AdamW, ours to make: its state is the same on every device and at every stage.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": settings.precision == "bfloat16"},
        "gradient_clipping": settings.max_gradient_norm,
        "steps_per_print": 1 << 62,
    }


class ZeroEngine:
    """A network that is trained by all workers of the process group.

    Args:
        network: with float32 weights, the same on every worker, in training mode. It is changed.
            Parameters that need no gradient stand still and are no part of the state.
        settings: how.
        device: of this worker.

    Attributes:
        module: what to call in place of the network.
    """

    def __init__(self, network: nn.Module, settings: ZeroSettings, *, device: str) -> None:
        weights = {
            name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad
        }
        self.shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        self._settings = settings
        self._device = device
        self.module = _initialize(network, settings, device)
        self._zero = self.module.optimizer
        self._optimizer: torch.optim.Optimizer = self._zero.optimizer
        self._places = list(places_of(self.module))
        # All of them, also those of a worker that has nothing but the padding at the end.
        self._flats: list[Tensor] = (
            self._zero.fp32_partitioned_groups_flat
            if settings.stage == 3
            else self._zero.single_partition_of_fp32_groups
        )
        self._average = FlatAverage(self._flats, decay=settings.ema_decay)
        self._reset(weights)

    @property
    def num_parameters(self) -> int:
        """Trained weights, of all workers together."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def backward_and_step(self, loss: Tensor) -> None:
        """One forward pass's gradients; after the last accumulated one, the optimizer's step.

        Args:
            loss: mean over the micro-batch, a scalar on this worker.
        """
        self.module.backward(loss)
        self.module.step()

    @property
    def was_skipped(self) -> bool:
        """Did the last step change nothing, because a gradient of some worker was not finite."""
        return bool(self._zero.overflow)

    def gradient_norm(self) -> float:
        """Norm of the gradient of the last step, before it was clipped."""
        norm = self.module.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def set_learning_rate(self, learning_rate: float, *, step: int) -> None:
        """Of the step after ``step`` others, whether they changed anything or not."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_of_group(group, learning_rate, step=step)

    def update_average(self) -> None:
        """Moves the running mean of the weights towards them."""
        self._average.update(self._flats)

    def pieces(self) -> Iterator[Piece]:
        """This worker's share of all state; tensors are views that the next step changes."""
        shadows = dict(zip(map(id, self._flats), self._average.shadows, strict=True))
        for place in self._places:
            state = self._optimizer.state[place.flat]
            yield Piece(
                name=place.name,
                start=place.start,
                tensors={
                    "master": place.view(place.flat),
                    "exp_avg": place.view(state["exp_avg"]),
                    "exp_avg_sq": place.view(state["exp_avg_sq"]),
                    "average": place.view(shadows[id(place.flat)]),
                },
            )

    def load(self, reader: PieceReader, *, num_updates: int) -> None:
        """Takes up the state of a checkpoint, whatever workers wrote it.

        Args:
            reader: of its files.
            num_updates: optimizer steps that it has seen.

        Raises:
            WeightsError: it is of another network.
        """
        with torch.no_grad():
            for piece in self.pieces():
                for kind, tensor in piece.tensors.items():
                    tensor.copy_(reader.read(piece.name, kind, piece.start, piece.num_elements))
        self._after_change(num_updates)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[Any]:
        """The network with the running mean in place of its weights, in evaluation mode.

        At stage 1 or 2, where every worker has the whole network. All workers do it together.
        Afterwards the weights have their own bits again.
        """
        assert self._settings.stage < 3, "at stage 3 no worker has the whole network"
        with self._average.in_place_of(self._flats):
            self._refresh_network()
            self.module.eval()
            try:
                yield self.module.module
            finally:
                self.module.train()
        self._refresh_network()

    @torch.no_grad()
    def _reset(self, weights: Mapping[str, Tensor]) -> None:
        """The state before the first step.

        DeepSpeed has rounded the weights to the network's precision and may have run the optimizer
        once to make its state; here it begins from the weights as they are, with clean moments.
        """
        for flat in self._flats:
            self._optimizer.state[flat] = {
                # On the device of the weights, as torch's fused AdamW has it.
                "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                "exp_avg": torch.zeros_like(flat.data),
                "exp_avg_sq": torch.zeros_like(flat.data),
            }
        for place in self._places:
            whole = weights[place.name].reshape(-1)
            mine = whole[place.start : place.start + place.num_elements]
            place.view(place.flat).copy_(mine)
        for shadow, flat in zip(self._average.shadows, self._flats, strict=True):
            shadow.copy_(flat)
        self._after_change(0)

    def _after_change(self, num_updates: int) -> None:
        """Makes the network's weights and the counts of updates agree with the state."""
        self._average.num_steps = num_updates
        for state in self._optimizer.state.values():
            state["step"].fill_(num_updates)
        self._refresh_network()

    def _refresh_network(self) -> None:
        """Makes the network's weights those of the optimizer, on all workers."""
        if self._settings.stage == 3:
            # Whole copies of parameters that it has gathered are let go, to be gathered anew.
            self._zero._partition_all_parameters()
            for number in range(len(self._zero.fp32_partitioned_groups_flat)):
                self._zero._reassign_or_swap_out_partitioned_parameters(number)
            persistent = self._zero.persistent_parameters
            if persistent:
                persistent[0].all_gather(persistent)
        else:
            self._zero.update_lp_params()
            for number in range(len(self._zero.bit16_groups)):
                self._zero._update_model_bit16_weights(number)
        dist.barrier()


def _initialize(network: nn.Module, settings: ZeroSettings, device: str) -> Any:
    import deepspeed  # late: importing it looks for compilers and devices

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device == "cpu":
        # An all-reduce over shared memory that DeepSpeed would compile now; nothing here uses it,
        # and workers that compile at the same time get into each other's way.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    prefix = settings.late_prefix
    named = list(network.named_parameters())
    late = [p for name, p in named if prefix and name.startswith(prefix)]
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=make_adamw(
            [p for name, p in named if not (prefix and name.startswith(prefix))],
            settings.adamw,
            learning_rate=settings.learning_rate,
            late=late,
            first_late_step=settings.first_late_step,
        ),
        config=deepspeed_config(settings, dist.get_world_size()),
        dist_init_required=False,
    )
    return engine


def use_cpu_accelerator() -> None:
    """Tells DeepSpeed, before it is imported, that there is no device but the CPU."""
    os.environ["DS_ACCELERATOR"] = "cpu"
