"""Before any picture is made: every slice counted on the cluster, and headers judged if asked.

Many slices go into one task and few tasks are under way at a time, so the driver holds a number for
each slice and nothing for a row.
"""

import collections
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from cluster.pools import get
from cluster.prepare_count import count_rows, judge_headers
from cluster.prepare_work import PrepareWork
from sdxl_core.data.buckets import Bucket, merge_thin_buckets
from sdxl_core.storage.sample_totals import SampleTotals, add_totals

logger = logging.getLogger(__name__)

_SLICES_PER_TASK = 16
_TASKS_PER_CPU = 2
# Slices that --plan looks into at most: more of them cost requests and say little more.
_PLANNED_SLICES = 64


def count_all(work: PrepareWork) -> npt.NDArray[np.int64]:
    """Rows of every slice, int64 ``(num_slices,)``, counted without the readers of the sources.

    Raises:
        StoreError, SchemaError: if a slice cannot be counted; the message names it.
    """
    counts = np.zeros(work.sources.num_slices, np.int64)
    for parts, found in _run(work, count_rows, range(len(counts))):
        counts[parts] = found
    return counts


def merge_thin(work: PrepareWork, least: int) -> dict[Bucket, Bucket]:
    """For each bucket with fewer than ``least`` samples another one, from headers of all rows.

    Raises:
        StoreError, SchemaError: if a slice cannot be read; the message names it.
    """
    totals = SampleTotals()
    for _, found in _run(work, judge_headers, range(work.sources.num_slices), None):
        totals = add_totals([totals, *found])
    counts = {_bucket(name): num for name, num in totals.num_by_bucket.items()}
    merged = merge_thin_buckets(counts, least)
    return {bucket: other for bucket, other in sorted(merged.items()) if other != bucket}


def sample_headers(
    work: PrepareWork, counts: npt.NDArray[np.int64], *, max_rows: int
) -> tuple[SampleTotals, float]:
    """What about ``max_rows`` rows, evenly spread, would become; and their share of all rows.

    Raises:
        StoreError, SchemaError: if a slice cannot be read; the message names it.
    """
    num_chosen = min(len(counts), _PLANNED_SLICES)
    chosen = np.linspace(0, len(counts) - 1, num_chosen).round().astype(int)
    rows_each = max(1, -(-max_rows // num_chosen))
    totals = add_totals(
        one for _, found in _run(work, judge_headers, chosen.tolist(), rows_each) for one in found
    )
    return totals, totals.num_source_rows / max(1, int(counts.sum()))


def _run(
    work: PrepareWork, function: Callable[..., list[Any]], parts: Sequence[int], *arguments: Any
) -> Iterator[tuple[list[int], list[Any]]]:
    """Runs ``function`` over all slices; yields slices and results as they come."""
    work_ref = ray.put(work)
    num_cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    size = max(1, min(_SLICES_PER_TASK, len(parts) // (num_cpus * _TASKS_PER_CPU)))
    task = ray.remote(num_cpus=1, max_retries=3)(function)
    waiting = collections.deque(
        list(parts[first : first + size]) for first in range(0, len(parts), size)
    )
    running: dict[Any, list[int]] = {}
    while waiting or running:
        while waiting and len(running) < num_cpus * _TASKS_PER_CPU:
            some = waiting.popleft()
            running[task.remote(work_ref, some, *arguments)] = some
        done, _ = ray.wait(list(running), num_returns=1)
        found = get(done[0])
        yield running.pop(done[0]), found


def _bucket(name: str) -> Bucket:
    height, _, width = name.partition("x")
    return int(height), int(width)
