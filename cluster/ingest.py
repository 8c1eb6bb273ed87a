"""Planned rows to the training workers: read once, decoded elsewhere, in the plan's order.

    feeder (an actor)   walks the plan a few batches ahead of the workers and starts tasks
    read task           one unit of the samples -> Arrow table in the object store
    gather task         a global batch's rows of those tables -> a ``SampleBatch`` for each forward
                        pass of each worker
    encoder (an actor)  pictures and captions of one -> latents and texts, if the run has encoders

A unit is read once for all workers and kept while its window is open. A unit that cannot be read
stops the run with the name of its file: no row is skipped. Which rows a worker gets is decided by
``sdxl_core.data.plan`` alone; here is only how they come to it.
"""

import collections
import dataclasses
import itertools
import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from cluster.train_size import TASK_CPUS
from sdxl_core.contract.errors import ConfigError, JobError, SdxlError
from sdxl_core.data.buckets import Bucket
from sdxl_core.data.holdout import holdout_places
from sdxl_core.data.plan import (
    GlobalBatch,
    PlanSettings,
    SampleManifest,
    plan_batches,
    rank_positions,
)
from sdxl_core.storage.sample_reading import read_unit
from sdxl_core.storage.stores import open_file
from sdxl_core.training.seeded_batches import SampleBatch, SampleView, gather_rows, make_batch

logger = logging.getLogger(__name__)

# Tries of a task whose process died. Storage has tries of its own.
TASK_RETRIES = 3
# A feeder that has nothing to say for so long has lost its tasks.
MAX_WAIT_S = 1800.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class IngestWork:
    """What is to be delivered.

    Args:
        manifest: what there is.
        plan: which rows form which batch.
        batch_multiple: see ``plan_epoch``.
        view: what of each row is wanted.
        world_size: workers.
        num_accumulated: forward passes of a worker in a step.
        num_ahead: global batches that are made ready before they are asked for.
        holdout: share of the samples, by ``data.holdout``, that units have no more when they are
            read; the manifest counts without them.
        num_cached_units: units that are kept for later batches; 0: as many as may be open.
        retries: tries of one storage operation.
        timeout_s: of one storage operation.
    """

    manifest: SampleManifest
    plan: PlanSettings
    batch_multiple: int
    view: SampleView
    world_size: int
    num_accumulated: int
    num_ahead: int = 4
    holdout: float = 0.0
    num_cached_units: int = 0
    retries: int = 6
    timeout_s: float = 30.0

    @property
    def num_units_kept(self) -> int:
        """As many as the open windows of all buckets hold, the one after each included."""
        open_units = 2 * self.plan.window_units * len(self.manifest.buckets)
        return self.num_cached_units or min(open_units, self.manifest.num_units)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankStep:
    """One worker's share of a global batch.

    Args:
        index: global batches before this one, over all epochs.
        epoch: from 0.
        bucket: (height, width), pixels.
        batches: one for each forward pass.
        wait_s: how long the worker has waited for it, seconds.
    """

    index: int
    epoch: int
    bucket: Bucket
    batches: tuple[SampleBatch, ...]
    wait_s: float


def share_out(batch: GlobalBatch, work: IngestWork) -> list[slice]:
    """Which rows of a batch each forward pass takes: of worker 0 all in order, then of worker 1 ...

    Raises:
        ConfigError: the batch cannot be shared evenly.
    """
    micro = check_shares(batch.num_rows, work)
    return [
        positions
        for rank in range(work.world_size)
        for positions in rank_positions(batch.num_rows, rank, work.world_size, micro)
    ]


def check_shares(num_rows: int, work: IngestWork) -> int:
    """The rows of one forward pass when all of a batch's passes have equally many.

    Raises:
        ConfigError: they cannot.
    """
    num_passes = work.world_size * work.num_accumulated
    if num_rows % num_passes:
        raise ConfigError(
            f"a global batch of {num_rows} samples cannot be shared by {work.world_size} workers x "
            f"{work.num_accumulated} accumulated passes = {num_passes}; change --how.workers or "
            "--how.micro-batch-size, or give --batch-multiple with area-scaled batches"
        )
    return num_rows // num_passes


def local_steps(work: IngestWork, *, start: int, rank: int) -> Iterator[RankStep]:
    """What ``ray_steps`` delivers, read and decoded right here when it is asked for."""
    num = work.num_accumulated
    batches = plan_batches(
        work.manifest, work.plan, start=start, world_batch_multiple=work.batch_multiple
    )
    units: collections.OrderedDict[int, pa.Table] = collections.OrderedDict()
    for index, batch in enumerate(batches, start):
        began = time.monotonic()
        for unit in dict.fromkeys(batch.unit.tolist()):
            if unit not in units:
                units[unit] = _read(*_unit_arguments(work, unit))
            units.move_to_end(unit)
        mine = share_out(batch, work)[rank * num : (rank + 1) * num]
        made = tuple(_gather(batch, positions, units, work.view) for positions in mine)
        _forget(units, work.num_units_kept)
        yield RankStep(
            index=index,
            epoch=batch.epoch,
            bucket=batch.bucket,
            batches=made,
            wait_s=time.monotonic() - began,
        )


def start_feeder(work: IngestWork, *, start: int, name: str, encoders: Sequence[Any] = ()) -> None:
    """Starts the actor that ``ray_steps`` of every worker speaks to; it ends with this process.

    Args:
        work: what is to be delivered.
        start: the first global batch that any worker will ask for.
        name: of the actor.
        encoders: see ``Feeder``.
    """
    feeder = ray.remote(Feeder).options(num_cpus=0, name=name)
    _FEEDERS[name] = feeder.remote(work, start, list(encoders))


# A named actor lives as long as a handle of it is kept.
_FEEDERS: dict[str, Any] = {}


def ray_steps(name: str, *, start: int, rank: int, num_prefetched: int = 2) -> Iterator[RankStep]:
    """The steps of one worker from the feeder ``name`` on, fetched by a thread.

    Raises:
        SdxlError: what a task met with: a file that cannot be read, a sample that does not fit.
        RayError: the feeder, or what it had made ready, is gone with a process or a machine; no
            fault of the run: its workers start again.
    """
    ready: queue.Queue[RankStep | Exception] = queue.Queue(maxsize=num_prefetched)
    is_over = threading.Event()
    arguments = (ray.get_actor(name), start, rank, ready, is_over)
    threading.Thread(target=_fetch, args=arguments, daemon=True, name="ingest").start()
    try:
        while True:
            began = time.monotonic()
            found = ready.get()
            if isinstance(found, Exception):
                raise found
            yield dataclasses.replace(found, wait_s=time.monotonic() - began)
    finally:
        is_over.set()


class Feeder:
    """Starts the tasks that make batches ready, a few ahead of the workers.

    Args:
        work: what is to be delivered.
        start: the first global batch that any worker will ask for.
        encoders: actors with a method ``encode``, from ``SampleBatch`` to ``SampleBatch``, that all
            batches go through in turn; without any they are delivered as they were read.
    """

    def __init__(self, work: IngestWork, start: int, encoders: Sequence[Any] = ()) -> None:
        self._work, self._encoders = work, itertools.cycle(encoders)
        self._has_encoders = bool(encoders)
        self._batches = plan_batches(
            work.manifest, work.plan, start=start, world_batch_multiple=work.batch_multiple
        )
        self._next = start
        self._ready: dict[int, tuple[int, Bucket, list[Any]]] = {}
        self._units: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._asked = dict.fromkeys(range(work.world_size), start)
        self._read = ray.remote(_read).options(num_cpus=TASK_CPUS, max_retries=TASK_RETRIES)
        self._gather = ray.remote(_gather_all).options(
            num_cpus=TASK_CPUS,
            max_retries=TASK_RETRIES,
            num_returns=work.world_size * work.num_accumulated,
        )

    def share(self, index: int, rank: int) -> tuple[int, Bucket, list[Any]]:
        """Epoch, bucket and the references of one worker's batches; indices rise by one."""
        while self._next <= index + self._work.num_ahead:
            self._launch()
        self._asked[rank] = index
        for old in [done for done in self._ready if done < min(self._asked.values())]:
            del self._ready[old]
        epoch, bucket, references = self._ready[index]
        num = self._work.num_accumulated
        return epoch, bucket, references[rank * num : (rank + 1) * num]

    def _launch(self) -> None:
        batch = next(self._batches)
        numbers = list(dict.fromkeys(batch.unit.tolist()))
        for unit in numbers:
            if unit not in self._units:
                self._units[unit] = self._read.remote(*_unit_arguments(self._work, unit))
            self._units.move_to_end(unit)
        tables = [self._units[unit] for unit in numbers]
        slices = share_out(batch, self._work)
        made = self._gather.remote(batch, slices, self._work.view, numbers, *tables)
        references = [made] if len(slices) == 1 else made
        if self._has_encoders:
            references = [next(self._encoders).encode.remote(batch) for batch in references]
        self._ready[self._next] = (batch.epoch, batch.bucket, references)
        self._next += 1
        _forget(self._units, self._work.num_units_kept)


def _fetch(
    feeder: Any,
    start: int,
    rank: int,
    ready: "queue.Queue[RankStep | Exception]",
    is_over: threading.Event,
) -> None:
    """Puts steps, or the error that ends them, into ``ready``."""
    index = start
    while not is_over.is_set():
        step: RankStep | Exception
        try:
            epoch, bucket, references = ray.get(
                feeder.share.remote(index, rank), timeout=MAX_WAIT_S
            )
            batches = tuple(ray.get(references, timeout=MAX_WAIT_S))
            step = RankStep(index=index, epoch=epoch, bucket=bucket, batches=batches, wait_s=0.0)
        except RayTaskError as error:
            step = error.cause if isinstance(error.cause, SdxlError | RayError) else _gone(error)
        except RayError as error:
            step = error
        while not is_over.is_set():
            try:
                ready.put(step, timeout=1.0)
                break
            except queue.Full:
                continue
        if isinstance(step, Exception):
            return
        index += 1


def _gone(error: Exception) -> JobError:
    return JobError(f"samples could not be delivered: {' '.join(str(error).split())[-800:]}")


def _unit_arguments(work: IngestWork, unit: int) -> tuple[Any, ...]:
    manifest = work.manifest
    url = manifest.files[manifest.unit_file[unit]]
    index = int(manifest.unit_index[unit])
    return url, index, work.view.columns, work.holdout, work.retries, work.timeout_s


def _read(
    url: str,
    row_group: int,
    columns: tuple[str, ...],
    holdout: float,
    retries: int,
    timeout_s: float,
) -> pa.Table:
    store, path = open_file(url, retries=retries, timeout_s=timeout_s)
    rows = read_unit(store, path, row_group, columns)
    if not holdout:
        return rows
    return rows.filter(holdout_places(rows["id"].to_pylist()) >= holdout)


def _gather(
    batch: GlobalBatch, positions: slice, units: dict[int, pa.Table], view: SampleView
) -> SampleBatch:
    rows = gather_rows(units, batch.unit[positions].tolist(), batch.row[positions].tolist())
    return make_batch(rows, batch.visit[positions].tolist(), view, batch.bucket)


def _gather_all(
    batch: GlobalBatch,
    slices: list[slice],
    view: SampleView,
    numbers: list[int],
    *tables: pa.Table,
) -> Any:
    units = dict(zip(numbers, tables, strict=True))
    made = [_gather(batch, positions, units, view) for positions in slices]
    return made[0] if len(made) == 1 else made


def _forget(units: "collections.OrderedDict[int, Any]", num_kept: int) -> None:
    while len(units) > num_kept:
        units.popitem(last=False)
