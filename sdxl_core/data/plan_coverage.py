"""How often an epoch sees the rows of each bucket, counted without visiting each row.

Passes and windows that an epoch takes whole are counted by units; rows are looked at in those
windows alone in which it begins or ends.

Legend: U units of a bucket, N rows.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sdxl_core.data.buckets import Bucket
from sdxl_core.data.plan_order import BucketStream, PlannedRows
from sdxl_core.data.plan_spans import EpochSpan, PlanParts


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketCoverage:
    """What one epoch sees of one bucket.

    Args:
        bucket: (height, width), pixels.
        num_rows: rows that there are.
        num_unseen: of these, not in the epoch. With ``carry`` the first ones of the next.
        num_once: of these, seen once.
        num_repeated: of these, seen twice or more often.
        num_batches: global batches of the epoch.
        batch_size: rows of each.
    """

    bucket: Bucket
    num_rows: int
    num_unseen: int
    num_once: int
    num_repeated: int
    num_batches: int
    batch_size: int

    @property
    def num_drawn(self) -> int:
        """Rows in all batches; one that is there twice counts twice."""
        return self.num_batches * self.batch_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coverage:
    """What one epoch sees; a line for each bucket of the manifest, in its order."""

    buckets: tuple[BucketCoverage, ...]

    @property
    def num_rows(self) -> int:
        """Rows that there are."""
        return sum(bucket.num_rows for bucket in self.buckets)

    @property
    def num_unseen(self) -> int:
        """Rows that are not in the epoch."""
        return sum(bucket.num_unseen for bucket in self.buckets)

    @property
    def num_once(self) -> int:
        """Rows that are seen once."""
        return sum(bucket.num_once for bucket in self.buckets)

    @property
    def num_repeated(self) -> int:
        """Rows that are seen twice or more often."""
        return sum(bucket.num_repeated for bucket in self.buckets)

    @property
    def num_batches(self) -> int:
        """Global batches of the epoch."""
        return sum(bucket.num_batches for bucket in self.buckets)


def coverage_of(parts: PlanParts, spans: Sequence[EpochSpan]) -> Coverage:
    """Counts what an epoch takes from each bucket's stream: ``spans``, a span for each."""
    found = []
    for bucket, size, stream, span in zip(
        parts.buckets, parts.sizes, parts.streams, spans, strict=True
    ):
        unseen, once, repeated = _rows_by_times(stream, span, span.num_batches * size)
        found.append(
            BucketCoverage(
                bucket=bucket,
                num_rows=unseen + once + repeated,
                num_unseen=unseen,
                num_once=once,
                num_repeated=repeated,
                num_batches=span.num_batches,
                batch_size=size,
            )
        )
    return Coverage(buckets=tuple(found))


def _rows_by_times(stream: BucketStream, span: EpochSpan, num_drawn: int) -> tuple[int, int, int]:
    """Rows seen 0, 1 and more times when the first ``num_drawn`` rows of an epoch are taken."""
    times_U = np.zeros(len(stream.unit_U), np.int64)
    loose: list[PlannedRows] = []
    if num_drawn:
        num_whole, num_left = divmod(num_drawn, span.num_rows)
        if num_whole:
            whole_U, rows = _tally(stream, span.first, span.first + span.num_rows)
            times_U += num_whole * whole_U
            loose += rows * min(2, num_whole)
        if num_left:
            part_U, rows = _tally(stream, span.first, span.first + num_left)
            times_U += part_U
            loose += rows
    counts = np.zeros(3, np.int64)
    np.add.at(counts, np.minimum(times_U, 2), stream.rows_U)
    unit_N, extra_N = _distinct(loose)
    base_N = times_U[np.searchsorted(stream.unit_U, unit_N)]
    np.subtract.at(counts, np.minimum(base_N, 2), 1)
    np.add.at(counts, np.minimum(base_N + extra_N, 2), 1)
    unseen, once, repeated = counts.tolist()
    return unseen, once, repeated


def _tally(
    stream: BucketStream, start: int, stop: int
) -> tuple[npt.NDArray[np.int64], list[PlannedRows]]:
    """Positions ``start`` to ``stop`` of a stream: how often each unit is there as a whole, and the
    rows of units that are not.
    """
    first, last = stream.pass_at(start), stream.pass_at(stop - 1)
    times_U = np.zeros(len(stream.unit_U), np.int64)
    if last > first + 1:
        times_U += stream.visits_before(last) - stream.visits_before(first + 1)
    loose = []
    for number in sorted({first, last}):
        order = stream.order_of(number)
        ends_W = np.append(
            order.starts_O[: -1 : stream.window_units], order.starts_O[-1]
        )  # of windows
        lowest = max(start - order.first, 0)
        highest = min(stop - order.first, int(ends_W[-1]))
        low = int(np.searchsorted(ends_W, lowest))
        high = int(np.searchsorted(ends_W, highest, side="right")) - 1
        if low > high:  # within one window
            loose.append(stream.take(order.first + lowest, highest - lowest))
            continue
        whole = order.unit_O[low * stream.window_units : high * stream.window_units]
        times_U += np.bincount(whole, minlength=len(times_U))
        for a, b in ((lowest, int(ends_W[low])), (int(ends_W[high]), highest)):
            if a < b:
                loose.append(stream.take(order.first + a, b - a))
    return times_U, loose


def _distinct(
    loose: Sequence[PlannedRows],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The unit of each distinct row, and how often the row is there."""
    keys = [(rows.unit.astype(np.int64) << 32) | rows.row for rows in loose]
    distinct, times = np.unique(np.concatenate([np.zeros(0, np.int64), *keys]), return_counts=True)
    return distinct >> 32, times
