"""One training worker: everything between the launcher that starts it and the loop that trains."""

import contextlib
import functools
import logging
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cluster.checkpoints import Checkpointer, Progress, load_checkpoint
from cluster.ingest import ray_steps, start_feeder
from cluster.tracking import Tracker
from cluster.train_encoders import check_encoders, start_encoders
from cluster.train_holdout import HoldoutMeter
from cluster.train_hub import StopFlag
from cluster.train_loop import LoopSettings, train_loop
from cluster.train_meter import Wishes
from cluster.train_stages import TrainStage, make_meter, make_stage
from cluster.train_validation import Picture, render, write_pictures
from cluster.train_work import TrainWork
from cluster.zero import ZeroEngine, ZeroSettings
from sdxl_core.contract.errors import SdxlError
from sdxl_core.storage.stores import Store, open_store
from sdxl_core.training.autoencoder_network import DISCRIMINATOR_PREFIX
from sdxl_core.training.checkpoint_store import (
    CheckpointRecord,
    find_checkpoint,
    open_checkpoint,
)

logger = logging.getLogger(__name__)


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs on every worker. ``config``: ``work`` and ``hub``, the hub's name."""
    work: TrainWork = config["work"]
    hub = ray.get_actor(config["hub"])
    if ray.get(hub.fatal.remote()):
        return  # the workers before these have said why the run cannot go on
    try:
        _train(work, hub)
    except SdxlError as error:
        ray.get(hub.fail.remote(f"{type(error).__name__}: {error}"))
        raise


def _train(work: TrainWork, hub: Any) -> None:
    torch.set_num_threads(work.num_threads)
    work = work.for_workers(dist.get_world_size())  # of a range, any number may have been started
    rank, device = dist.get_rank(), _device(work)
    store = open_store(work.out, retries=work.ingest.retries, timeout_s=work.ingest.timeout_s)
    token = _agree(uuid.uuid4().hex[:8])
    found = _agree(_find(work, store) if rank == 0 else None)
    start_step = 0 if found is None else found[1].step
    feeder = f"{run_name(work)}-feeder-{token}"
    if rank == 0:  # it reads while the networks are loaded
        encoders = start_encoders(work)
        start_feeder(work.ingest, start=start_step, name=feeder, encoders=encoders)
    stage = make_stage(work, device)
    engine = ZeroEngine(stage.network.to(device), zero_settings(work), device=work.device)
    if rank == 0 and encoders:
        check_encoders(encoders)
    start = Progress()
    if found is not None:
        with _scratch(token) as folder:
            start = load_checkpoint(
                engine, open_store(found[0]), found[1], folder, local_rank=_local_rank()
            )
    checkpointer = Checkpointer(
        store,
        rank=rank,
        world_size=dist.get_world_size(),
        token=token,
        fingerprint=work.fingerprint,
        model=work.checkpoint_model(),
        keep=work.keep,
    )
    teller = _Teller(work, store, hub, start_step=start_step) if rank == 0 else None
    try:
        train_loop(
            engine,
            ray_steps(feeder, start=start.step, rank=rank),
            functools.partial(stage.losses_of, engine),
            settings=loop_settings(work),
            start=start,
            checkpointer=checkpointer,
            meter=make_meter(work, device),
            ask=_Asker(hub),
            on_report=_tell_nobody if teller is None else teller.report,
            on_checkpoint=_tell_nobody if teller is None else teller.flush,
            on_validation=functools.partial(
                _validate, engine, stage, work, device, held_meter(work), teller
            ),
        )
    finally:
        checkpointer.close()
        if teller is not None:
            teller.close()


class _Teller:
    """The first worker tells people and the driver what all workers have found."""

    def __init__(self, work: TrainWork, store: Store, hub: Any, *, start_step: int) -> None:
        self._store, self._hub = store, hub
        self._tracker = Tracker(
            store, start_step=start_step, tensorboard=work.tensorboard, services=work.trackers
        )

    def report(self, progress: Progress, values: dict[str, float]) -> None:
        self._tracker.add(progress.step, values)
        self._hub.report.remote({"step": float(progress.step), **values})

    def show(self, step: int, pictures: Sequence[Picture]) -> None:
        write_pictures(self._store, step, pictures)
        self._tracker.add_pictures(step, pictures)

    def flush(self) -> None:
        self._tracker.flush()

    def close(self) -> None:
        self._tracker.close()


def _tell_nobody(*_: object) -> None:
    """What the other workers do."""


def held_meter(work: TrainWork) -> HoldoutMeter | None:
    """What measures the samples that are set aside; None if there are none."""
    return None if work.holdout is None else HoldoutMeter(work.holdout, work.ingest)


def _validate(
    engine: ZeroEngine,
    stage: TrainStage,
    work: TrainWork,
    device: str,
    held: HoldoutMeter | None,
    teller: _Teller | None,
    progress: Progress,
) -> dict[str, float]:
    if work.validation is not None:
        assert stage.frozen is not None
        pictures = render(engine, stage.frozen.model, work.validation.requests)
        if teller is not None:
            teller.show(progress.step, pictures)
    return {} if held is None else held.measure(engine, stage, device=device)


def _device(work: TrainWork) -> str:
    if work.device == "cpu":
        return "cpu"
    torch.cuda.set_device(ray.train.torch.get_device())
    return f"cuda:{torch.cuda.current_device()}"


def zero_settings(work: TrainWork) -> ZeroSettings:
    """How the state of the run is spread."""
    ingest, pair = work.ingest, work.autoencoder
    return ZeroSettings(
        stage=work.zero_stage,
        offload_optimizer=work.offload_optimizer,
        precision=work.precision,
        micro_batch_size=ingest.plan.global_batch_size
        // (ingest.world_size * ingest.num_accumulated),
        num_accumulated=ingest.num_accumulated,
        max_gradient_norm=work.max_gradient_norm,
        learning_rate=work.learning_rate.peak,
        adamw=work.adamw,
        ema_decay=work.ema_decay,
        late_prefix="" if pair is None else DISCRIMINATOR_PREFIX,
        first_late_step=0 if pair is None else pair.objective.first_adversarial_step,
    )


def loop_settings(work: TrainWork) -> LoopSettings:
    """How long the run is, and how often what is done beside the steps."""
    return LoopSettings(
        num_steps=work.num_steps,
        learning_rate_at=work.learning_rate.at,
        report_every=work.report_every,
        checkpoint_every=work.checkpoint_every,
        max_skipped_in_row=work.max_skipped_in_row,
        validate_every=max(
            work.validation.every if work.validation is not None else 0,
            work.holdout.every if work.holdout is not None else 0,
        ),
    )


def run_name(work: TrainWork) -> str:
    """The name of the run, as actors and Ray Train know it."""
    return f"sdxl-train-{work.fingerprint}"


def _find(work: TrainWork, store: Store) -> tuple[str, CheckpointRecord] | None:
    """Where to go on: the newest checkpoint of this run, else the one that the user named."""
    record = find_checkpoint(store, work.fingerprint)
    if record is not None:
        return work.out, record
    if work.resume_from:
        return open_checkpoint(work.resume_from)
    return None


def _agree(value: Any) -> Any:
    """What the first worker says."""
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


class _Asker:
    """Asked at every report: does the driver want to stop, is a node about to go.

    All workers call it the same number of times: they meet in it.
    """

    def __init__(self, hub: Any) -> None:
        self._flag = StopFlag(hub)
        self._known: Any = None

    def __call__(self) -> Wishes:
        preemption = ray.train.get_preemption_info()
        is_new = preemption is not None and preemption != self._known
        self._known = preemption
        return Wishes(checkpoint=is_new, stop=self._flag.is_wanted())


@contextlib.contextmanager
def _scratch(token: str) -> Iterator[Path]:
    """A folder that the workers of one node share, for as long as all of them need it."""
    node = ray.train.get_context().get_node_rank()
    folder = Path(tempfile.gettempdir(), f"sdxl-resume-{token}-{node}")
    folder.mkdir(exist_ok=True)
    yield folder
    dist.barrier()
    if _local_rank() == 0:
        shutil.rmtree(folder)


def _local_rank() -> int:
    return int(ray.train.get_context().get_local_rank())
