"""The order in which the rows of one bucket come: a stream without an end.

The stream is pass after pass; a pass is a new shuffle of all units of the bucket. Its units are
taken ``window_units`` at a time, and the rows of such a window are shuffled among themselves, so
that what is needed soon lies in few places. What stands at a position of the stream depends on
the position alone: seeking is the same as going there.

Shuffles sort by the numbers of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
number generators", 2014), which no version of a library can change.

Legend: U units of the bucket, O units of one pass, in its order, N rows.
"""

import dataclasses
import functools
import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sdxl_core.data.buckets import Bucket


class PlannedRows(NamedTuple):
    """Rows in the plan's order, and for how many a time each comes."""

    unit: npt.NDArray[np.int32]
    """Number of each row's unit in the manifest, int32[N]."""
    row: npt.NDArray[np.int32]
    """Its place in the unit, from 0, int32[N]."""
    visit: npt.NDArray[np.int64]
    """How often the row was in the stream before, int64[N]."""

    def part(self, start: int, stop: int) -> "PlannedRows":
        """Rows ``start`` to ``stop`` (excluded); nothing is copied."""
        chosen = slice(start, stop)
        return PlannedRows(self.unit[chosen], self.row[chosen], self.visit[chosen])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PassOrder:
    """One pass. ``unit_O`` counts in the bucket; ``starts_O`` has one number more, the end."""

    number: int
    first: int  # position of the stream at which the pass begins
    unit_O: npt.NDArray[np.int32]
    visit_O: npt.NDArray[np.int32]
    starts_O: npt.NDArray[np.int64]


class BucketStream:
    """The stream of one bucket.

    Args:
        seed: of the plan.
        bucket: (height, width) in pixels; buckets of one seed have unlike orders.
        unit_U: numbers of the bucket's units in the manifest, ascending.
        rows_U: samples in each of them, at least 1.
        dataset_U: number of each one's dataset.
        dataset_weights: how often a row of each dataset is in a pass, on average; > 0.
        window_units: rows are mixed within so many units.
    """

    def __init__(
        self,
        *,
        seed: int,
        bucket: Bucket,
        unit_U: npt.NDArray[np.int32],
        rows_U: npt.NDArray[np.int32],
        dataset_U: npt.NDArray[np.int16],
        dataset_weights: tuple[float, ...],
        window_units: int,
    ) -> None:
        self.window_units = window_units
        self.unit_U = unit_U
        self.rows_U = rows_U
        self._key = f"{seed} {bucket[0]}x{bucket[1]}"
        self._dataset_U = dataset_U
        self._weights = np.array(dataset_weights, np.float64)
        is_whole = all(self._weights[number].is_integer() for number in np.unique(dataset_U))
        self._offset_U = None if is_whole else self._spread_offsets()
        # What was used last, because the next batch begins where this one ended.
        self._order: PassOrder | None = None
        self._window: tuple[tuple[int, int], PlannedRows] | None = None

    @functools.cached_property
    def rows_per_pass(self) -> float:
        """Rows of a pass; the mean over many where a dataset's weight is no whole number."""
        rows_D = np.bincount(self._dataset_U, self.rows_U, len(self._weights))
        return float(rows_D @ self._weights)

    def visits_before(self, number: int) -> npt.NDArray[np.int64]:
        """How often each unit was in the passes before pass ``number``, int64[U]."""
        visits_U = number * self._weights[self._dataset_U]
        if self._offset_U is not None:
            visits_U = np.floor(visits_U + self._offset_U)
        return visits_U.astype(np.int64)

    def rows_before(self, number: int) -> int:
        """Position of the stream at which pass ``number`` begins."""
        if self._offset_U is None:
            return number * int(self.rows_per_pass)
        return int(self.visits_before(number) @ self.rows_U.astype(np.int64))

    def pass_at(self, position: int) -> int:
        """The pass that holds ``position`` of the stream, which must have rows."""
        number = int(position / self.rows_per_pass)
        while self.rows_before(number) > position:
            number -= 1
        while self.rows_before(number + 1) <= position:
            number += 1
        return number

    def order_of(self, number: int) -> PassOrder:
        """The units of pass ``number`` in their order; that of the last call is kept."""
        if self._order is None or self._order.number != number:
            self._order = None  # not two at a time
            self._order = self._make_order(number)
        return self._order

    def take(self, start: int, count: int) -> PlannedRows:
        """Rows at positions ``start`` to ``start + count`` (excluded) of the stream."""
        pieces = []
        number = self.pass_at(start)
        while count:
            order = self.order_of(number)
            local = start - order.first
            if local >= order.starts_O[-1]:
                number += 1
                continue
            nth = int(np.searchsorted(order.starts_O, local, side="right")) - 1
            window = nth // self.window_units
            rows = self._window_of(number, window)
            skipped = local - int(order.starts_O[window * self.window_units])
            piece = rows.part(skipped, skipped + count)
            pieces.append(piece)
            start += len(piece.unit)
            count -= len(piece.unit)
        return join_rows(pieces)

    def _make_order(self, number: int) -> PassOrder:
        before_U = self.visits_before(number)
        times_U = self.visits_before(number + 1) - before_U
        unit_O = np.repeat(np.arange(len(times_U), dtype=np.int32), times_U)
        nth_O = np.arange(len(unit_O)) - np.repeat(np.cumsum(times_U) - times_U, times_U)
        visit_O = (before_U[unit_O] + nth_O).astype(np.int32)
        order_O = permutation(f"units {self._key} {number}", len(unit_O))
        unit_O = unit_O[order_O]
        starts_O = np.zeros(len(unit_O) + 1, np.int64)
        np.cumsum(self.rows_U[unit_O], out=starts_O[1:])
        return PassOrder(
            number=number,
            first=self.rows_before(number),
            unit_O=unit_O,
            visit_O=visit_O[order_O],
            starts_O=starts_O,
        )

    def _window_of(self, number: int, window: int) -> PlannedRows:
        if self._window is None or self._window[0] != (number, window):
            self._window = (number, window), self._make_window(number, window)
        return self._window[1]

    def _make_window(self, number: int, window: int) -> PlannedRows:
        order = self.order_of(number)
        chosen = slice(window * self.window_units, (window + 1) * self.window_units)
        unit_W, visit_W = order.unit_O[chosen], order.visit_O[chosen]
        sizes_W = self.rows_U[unit_W]
        nth_N = np.repeat(np.arange(len(unit_W)), sizes_W)
        row_N = np.arange(len(nth_N)) - np.repeat(np.cumsum(sizes_W) - sizes_W, sizes_W)
        order_N = permutation(f"rows {self._key} {number} {window}", len(nth_N))
        nth_N = nth_N[order_N]
        return PlannedRows(
            unit=self.unit_U[unit_W[nth_N]],
            row=row_N[order_N].astype(np.int32),
            visit=visit_W[nth_N].astype(np.int64),
        )

    def _spread_offsets(self) -> npt.NDArray[np.float64]:
        """Numbers in [0, 1), evenly spread over each dataset's units, that say whose turn it is."""
        offset_U = np.zeros(len(self._dataset_U), np.float64)
        for number in np.unique(self._dataset_U):
            members = np.flatnonzero(self._dataset_U == number)
            order = permutation(f"turns {self._key} {number}", len(members))
            offset_U[members[order]] = np.arange(len(members)) / len(members)
        return offset_U


def join_rows(pieces: list[PlannedRows]) -> PlannedRows:
    """Rows of the pieces, one after another."""
    if len(pieces) == 1:
        return pieces[0]
    return PlannedRows(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True)))


def permutation(key: str, count: int) -> npt.NDArray[np.int64]:
    """A shuffle of 0 to ``count - 1`` that depends on the two arguments alone."""
    return np.argsort(random_numbers(key, count))  # no two of the numbers are equal


def random_numbers(key: str, count: int) -> npt.NDArray[np.uint64]:
    """Distinct numbers in ``[0, 2**64)`` that depend on the two arguments alone, uint64[count]."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"batch plan").digest()
    return splitmix64(int.from_bytes(digest, "big"), count)


def splitmix64(state: int, count: int) -> npt.NDArray[np.uint64]:
    """The first ``count`` outputs of splitmix64 from ``state``, uint64[count]."""
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(state)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
