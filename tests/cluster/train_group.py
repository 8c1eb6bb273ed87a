"""A toy network trained by a group of processes: what the tests of training without Ray share.

The network is small and of odd sizes, so that parameters lie across the workers' shares. What a
sample is comes from its seed alone, as in the product.
"""

import dataclasses
import multiprocessing
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from cluster.checkpoints import Checkpointer, Progress, load_checkpoint
from cluster.ingest import RankStep
from cluster.train_loop import LoopSettings, Outcome, train_loop
from cluster.train_meter import Meter, Wishes
from cluster.zero import ZeroEngine, ZeroSettings, use_cpu_accelerator
from sdxl_core.storage.stores import open_store
from sdxl_core.training.checkpoint_store import find_checkpoint
from sdxl_core.training.optimizers import AdamWSettings
from sdxl_core.training.sample_draws import normals
from sdxl_core.training.seeded_batches import SampleBatch
from sdxl_core.training.seeded_objective import SampleLosses

_IMPORTED_ONCE = [
    *("sdxl_core.nets.unet", "sdxl_core.nets.vae", "sdxl_core.nets.text_encoders"),
    *("deepspeed", "peft", "ray", "torch._dynamo", "tensorboardX"),
]

GLOBAL_BATCH_SIZE, NUM_ACCUMULATED, WIDTH = 8, 2, 7
BUCKET = (8, 8)


def run_group(
    function: Callable[..., None], *, world_size: int, folder: Path, arguments: tuple[Any, ...] = ()
) -> None:
    """Calls ``function(folder, *arguments)`` in ``world_size`` processes that form a group.

    They are forked from a process that has imported the libraries, once for all tests.
    """
    multiprocessing.set_forkserver_preload(_IMPORTED_ONCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")  # as ``use_cpu_accelerator``, for the first import
        torch.multiprocessing.start_processes(
            _join_group,
            args=(world_size, uuid.uuid4().hex, function, folder, arguments),
            nprocs=world_size,
            start_method="forkserver",
        )


def _join_group(
    rank: int,
    world_size: int,
    meeting_point: str,
    function: Callable[..., None],
    folder: Path,
    arguments: tuple[Any, ...],
) -> None:
    use_cpu_accelerator()
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    # A file of an earlier group would let this one wait for ever.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{meeting_point}", rank=rank, world_size=world_size
    )
    try:
        function(folder, *arguments)
    finally:
        dist.destroy_process_group()


def toy_network() -> nn.Module:
    """Always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(WIDTH, 13), nn.SiLU(), nn.Linear(13, WIDTH)).train()


def toy_engine(stage: int, *, precision: str = "bfloat16") -> ZeroEngine:
    """An engine around the toy network."""
    micro = GLOBAL_BATCH_SIZE // (dist.get_world_size() * NUM_ACCUMULATED)
    settings = ZeroSettings(
        stage=stage,
        offload_optimizer=False,
        precision=precision,  # type: ignore[arg-type]
        micro_batch_size=micro,
        num_accumulated=NUM_ACCUMULATED,
        max_gradient_norm=1.0,
        learning_rate=1e-2,
        adamw=AdamWSettings(),
        ema_decay=0.9,
    )
    return ZeroEngine(toy_network(), settings, device="cpu")


def toy_steps(start: int, *, poisoned: tuple[int, ...] = ()) -> Iterator[RankStep]:
    """Global batches from ``start`` on; of those ``poisoned`` one sample's loss is not finite."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    micro = GLOBAL_BATCH_SIZE // (world_size * NUM_ACCUMULATED)
    index = start
    while True:
        seeds = [1000 * index + row for row in range(GLOBAL_BATCH_SIZE)]
        if index in poisoned:
            seeds[0] = -1
        shares = [seeds[first : first + micro] for first in range(0, len(seeds), micro)]
        batches = tuple(
            SampleBatch(ids=[str(s) for s in share], seeds=share, captions=[], columns={})
            for share in shares[rank::world_size]
        )
        yield RankStep(index=index, epoch=0, bucket=BUCKET, batches=batches, wait_s=0.0)
        index += 1


def toy_losses(engine: ZeroEngine, precision: str) -> Callable[[SampleBatch, int], SampleLosses]:
    """The loss of the toy network: it learns to turn its input round."""
    dtype = getattr(torch, precision)

    def losses_of(samples: SampleBatch, _step: int) -> SampleLosses:
        seeds = [abs(seed) for seed in samples.seeds]
        input_BW = normals(seeds, (WIDTH,), "noise")
        error_BW = engine.module(input_BW.to(dtype)).float() - input_BW.flip(1)
        scale_B: Tensor = torch.tensor([float("nan") if s < 0 else 1.0 for s in samples.seeds])
        loss_B = error_BW.square().mean(1) * scale_B
        timestep_B = torch.tensor([seed % 1000 for seed in seeds])
        return SampleLosses(loss_B=loss_B, error_B=loss_B.detach(), timestep_B=timestep_B)

    return losses_of


@dataclasses.dataclass
class ToyRun:
    """One run of the loop in a store, from its newest checkpoint on."""

    store_path: Path
    stage: int
    precision: str = "bfloat16"
    checkpoint_every: int = 3
    poisoned: tuple[int, ...] = ()
    max_skipped_in_row: int = 20
    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    norms: dict[int, float] = dataclasses.field(default_factory=dict)
    reported_before_checkpoints: list[int] = dataclasses.field(default_factory=list)

    def train(
        self, num_steps: int, *, stop_at: int | None = None, save_at: int | None = None
    ) -> tuple[ZeroEngine, Outcome]:
        """Trains on; ``stop_at`` and ``save_at`` are the steps after which worker 0 alone is asked
        to stop, or for a checkpoint."""
        store = open_store(self.store_path)
        engine = toy_engine(self.stage, precision=self.precision)
        record = find_checkpoint(store, "toy")
        start = Progress()
        if record is not None:
            folder = self.store_path / f"fetched-{record.step}-{uuid.uuid4().hex}"
            start = load_checkpoint(engine, store, record, folder, local_rank=dist.get_rank())
        seen = [start.step]
        token = [uuid.uuid4().hex[:8]]
        dist.broadcast_object_list(token)
        checkpointer = Checkpointer(
            store,
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            token=token[0],
            fingerprint="toy",
            model={},
            keep=2,
            timeout_s=60.0,
        )

        def on_report(progress: Progress, values: dict[str, float]) -> None:
            seen.append(progress.step)
            if "loss" in values:
                self.losses[progress.step] = values["loss"]
            self.norms[progress.step] = values["grad_norm"]

        outcome = train_loop(
            engine,
            toy_steps(start.step, poisoned=self.poisoned),
            toy_losses(engine, self.precision),
            settings=LoopSettings(
                num_steps=num_steps,
                learning_rate_at=lambda step: 1e-2 / (1 + step),
                report_every=1,
                checkpoint_every=self.checkpoint_every,
                max_skipped_in_row=self.max_skipped_in_row,
            ),
            start=start,
            checkpointer=checkpointer,
            meter=Meter((BUCKET,), {BUCKET: 100}, device="cpu"),
            ask=lambda: Wishes(
                stop=dist.get_rank() == 0 and stop_at == seen[-1] + 1,
                checkpoint=dist.get_rank() == 0 and save_at == seen[-1] + 1,
            ),
            on_report=on_report,
            on_checkpoint=lambda: self.reported_before_checkpoints.append(seen[-1]),
        )
        return engine, outcome


def state_of(engine: ZeroEngine) -> dict[str, Tensor]:
    """This worker's share of all state, by kind and parameter."""
    return {
        f"{kind}/{piece.name}/{piece.start}": tensor.clone()
        for piece in engine.pieces()
        for kind, tensor in piece.tensors.items()
    }


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Are the states of all workers equal to the last bit."""
    is_same = left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    answer = torch.tensor([float(is_same)])
    dist.all_reduce(answer, op=dist.ReduceOp.MIN)
    return bool(answer.item())
