"""The two passes over the rows, with progress and events: slices are staged, groups are finished.

    slice numbers -> stage_slice -> counts            staged parts in ``_staging`` of the output
    group numbers -> finish_part -> counts            parts of the samples dataset

Nothing but numbers goes in and counts come out at the driver.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data

from cluster.pools import add_actors, add_tasks, cluster_size, iter_reports, number_blocks
from cluster.prepare_finish import finish_part
from cluster.prepare_latents import EncodeWork, FinishWithLatents, max_decode_threads
from cluster.prepare_stage import stage_slice
from cluster.prepare_work import PrepareWork
from cluster.progress import Progress, watched
from cluster.telemetry import EventLog, drain, start_hub
from sdxl_core.contract.errors import ResourceError
from sdxl_core.storage.stores import Store

# A finish task holds the pictures of its group, and once more those of the two files in the making.
_MEMORY_PER_GROUP_BYTE = 2.5


def stage_parts(
    work: PrepareWork,
    store: Store,
    parts: Sequence[int],
    counts: npt.NDArray[np.int64],
    *,
    size: int,
) -> Generator[dict[str, Any], None, None]:
    """Stages slices; yields ``num_rows`` and ``num_by_reason`` of each.

    Args:
        work: The run.
        store: Of the output.
        parts: Which slices.
        counts: Rows of every slice of the source.
        size: Slices that are worked on at the same time; 0: one for each CPU.

    Raises:
        JobError: if the job cannot go on; what is staged stays.
    """
    blocks = number_blocks(parts, num_rows=counts[list(parts)].tolist())
    num_rows = int(counts[list(parts)].sum())
    size = min(size or max(1, int(cluster_size().num_cpus)), len(parts))
    return _observed(
        store,
        lambda hub: add_tasks(blocks, stage_slice, [work, hub], size=size),
        Progress(num_rows, shown={"stage": "made"}),
    )


def finish_parts(
    work: PrepareWork,
    store: Store,
    parts: Sequence[int],
    *,
    num_rows: int,
    group_bytes: int,
    size: int,
    encode: EncodeWork | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Finishes groups; yields ``num_rows`` of each.

    Args:
        work: The run; its layout is written.
        store: Of the output.
        parts: Which groups.
        num_rows: About how many source rows they have.
        group_bytes: Pictures of the largest group.
        size: Groups that are worked on at the same time, or workers that encode; 0: as many as
            CPUs, memory and GPUs hold.
        encode: What turns pictures into moments; None keeps pictures.

    Raises:
        JobError: if the job cannot go on; what is committed stays.
    """
    blocks = number_blocks(parts)

    def build(hub: Any) -> ray.data.Dataset:
        if encode is None:
            num_tasks = min(size or _num_groups_at_once(group_bytes), len(parts))
            return add_tasks(blocks, finish_part, [work, hub], size=num_tasks)
        num_encoders, num_cpus, num_gpus = plan_encoders(encode, size)
        return add_actors(
            blocks,
            FinishWithLatents,
            [work, encode, hub, max_decode_threads(encode, ray.nodes())],
            size=min(num_encoders, len(parts)),
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            num_in_flight=2,
        )

    return _observed(store, build, Progress(num_rows, shown={"finish": "written"}))


def plan_encoders(encode: EncodeWork, wish: int) -> tuple[int, float, float]:
    """Number of encoders, and CPUs and GPUs of each.

    Args:
        encode: What they do.
        wish: How many the user asked for; 0 decides.

    Raises:
        ResourceError: if they do not fit on the cluster.
    """
    cluster = cluster_size()
    each, there, what = encode.num_threads, int(cluster.num_cpus), "CPUs"
    if encode.device == "cuda":
        each, there, what = 1, int(cluster.num_gpus), "GPUs"
    size = wish or max(1, there // each)
    if size * each > there:
        raise ResourceError(
            f"{what}: {size} encoders x {each} = {size * each}, but the cluster has {there}. Use "
            "fewer encoders (--how.encoders), fewer --cpu-threads, or a larger cluster"
        )
    return (size, 1.0, 1.0) if encode.device == "cuda" else (size, float(each), 0.0)


def _num_groups_at_once(group_bytes: int) -> int:
    cluster = cluster_size()
    by_memory = cluster.memory_bytes / (_MEMORY_PER_GROUP_BYTE * max(1, group_bytes))
    return max(1, int(min(cluster.num_cpus, by_memory)))


def _observed(
    store: Store, build: Callable[[Any], ray.data.Dataset], progress: Progress
) -> Generator[dict[str, Any], None, None]:
    """Runs a pass; what its workers report goes into the events and onto the screen."""
    events, hub = EventLog(store), start_hub()
    try:
        for report in watched(iter_reports(build(hub)), hub, events, progress):
            progress.add_part(report["num_rows"], 0)
            yield report
    finally:
        progress.close()
        events.append(drain(hub))
        events.flush()
