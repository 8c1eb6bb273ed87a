"""A micro training in this process's group, put together from the product's parts without Ray."""

import functools
from pathlib import Path

import torch.distributed as dist

from cluster.checkpoints import Checkpointer, Progress, load_checkpoint
from cluster.ingest import local_steps
from cluster.tracking import Tracker
from cluster.train_loop import train_loop
from cluster.train_meter import Wishes
from cluster.train_stages import make_meter, make_stage
from cluster.train_work import TrainWork
from cluster.train_worker import held_meter, loop_settings, zero_settings
from cluster.zero import ZeroEngine
from sdxl_core.storage.stores import open_store
from sdxl_core.training.checkpoint_store import find_checkpoint


def train_here(work: TrainWork, *, stop_at: int | None = None) -> ZeroEngine:
    """Trains on from the newest checkpoint of the run; ``stop_at``: until after that step."""
    store, rank = open_store(work.out), dist.get_rank()
    stage = make_stage(work, "cpu")
    engine = ZeroEngine(stage.network, zero_settings(work), device="cpu")
    start, record = Progress(), find_checkpoint(store, work.fingerprint)
    if record is not None:
        start = load_checkpoint(engine, store, record, Path(work.out), local_rank=rank)
    checkpointer = Checkpointer(
        store,
        rank=rank,
        world_size=dist.get_world_size(),
        token=f"t{start.step}",
        fingerprint=work.fingerprint,
        model=work.checkpoint_model(),
        keep=work.keep,
    )
    tracker = Tracker(store, start_step=start.step, tensorboard=True) if rank == 0 else None
    seen, held = [start.step], held_meter(work)

    def on_report(progress: Progress, values: dict[str, float]) -> None:
        seen.append(progress.step)
        if tracker is not None:
            tracker.add(progress.step, values)

    train_loop(
        engine,
        local_steps(work.ingest, start=start.step, rank=rank),
        functools.partial(stage.losses_of, engine),
        settings=loop_settings(work),
        start=start,
        checkpointer=checkpointer,
        meter=make_meter(work, "cpu"),
        ask=lambda: Wishes(stop=stop_at == seen[-1] + 1),
        on_report=on_report,
        on_checkpoint=lambda: None if tracker is None else tracker.flush(),
        on_validation=lambda _progress: (
            {} if held is None else held.measure(engine, stage, device="cpu")
        ),
    )
    checkpointer.close()
    if tracker is not None:
        tracker.close()
    return engine
