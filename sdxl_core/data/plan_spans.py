"""Which rows of its stream an epoch takes from each bucket, and how many batches they make."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import Bucket
from sdxl_core.data.manifest import SampleManifest
from sdxl_core.data.plan_order import BucketStream, PlannedRows, join_rows
from sdxl_core.data.plan_settings import (
    SHARE_ONE,
    PlanSettings,
    batch_sizes,
    bucket_shares,
    is_left_out,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochSpan:
    """What one epoch takes from one bucket's stream.

    ``num_rows`` positions from ``first`` on are its own. Batches that need more than those begin
    again at ``first`` (``remainder="repeat"``).
    """

    first: int
    num_rows: int
    num_batches: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PlanParts:
    """What is the same for all epochs of a plan; tuples go with ``buckets``.

    Args:
        settings: of the plan.
        buckets: of the manifest, (height, width) in pixels.
        sizes: rows of a global batch.
        streams: the order of the rows.
        shares: of an epoch's rows, in units of ``1 / SHARE_ONE``; None for those of the rows.
    """

    settings: PlanSettings
    buckets: tuple[Bucket, ...]
    sizes: tuple[int, ...]
    streams: tuple[BucketStream, ...]
    shares: tuple[int, ...] | None


def plan_parts(
    manifest: SampleManifest, settings: PlanSettings, *, world_batch_multiple: int
) -> PlanParts:
    """Looks at every unit of ``manifest``.

    Raises:
        ConfigError: settings that do not fit the manifest, or that drop all of its rows.
    """
    order_U = np.argsort(manifest.unit_bucket, kind="stable").astype(np.int32)
    bounds = np.cumsum(np.bincount(manifest.unit_bucket, minlength=len(manifest.buckets)))[:-1]
    streams = tuple(
        BucketStream(
            seed=settings.seed,
            bucket=bucket,
            unit_U=units,
            rows_U=manifest.unit_rows[units],
            dataset_U=manifest.unit_dataset[units],
            dataset_weights=manifest.dataset_weights,
            window_units=settings.window_units,
        )
        for bucket, units in zip(manifest.buckets, np.split(order_U, bounds), strict=True)
    )
    buckets = manifest.buckets
    parts = PlanParts(
        settings=settings,
        buckets=buckets,
        sizes=batch_sizes(buckets, settings, world_batch_multiple=world_batch_multiple),
        streams=streams,
        shares=bucket_shares(buckets, [stream.rows_per_pass for stream in streams], settings),
    )
    if settings.remainder == "drop":
        _require_a_batch(parts)
    return parts


def epoch_spans(parts: PlanParts, epoch: int) -> list[EpochSpan]:
    """What epoch ``epoch`` (from 0) takes from each stream."""
    remainder = parts.settings.remainder
    spans = []
    edges = (_rows_before(parts, epoch), _rows_before(parts, epoch + 1))
    for start, stop, size in zip(*edges, parts.sizes, strict=True):
        num_rows = stop - start
        if remainder == "carry":
            first, num_batches = start // size * size, stop // size - start // size
            num_rows = num_batches * size
        elif remainder == "drop":
            first, num_batches = start, num_rows // size
        else:
            first, num_batches = start, -(-num_rows // size)
        spans.append(EpochSpan(first=first, num_rows=num_rows, num_batches=num_batches))
    return spans


def take_from_span(stream: BucketStream, span: EpochSpan, start: int, count: int) -> PlannedRows:
    """``count`` rows from ``start`` on, counted from the beginning of the epoch."""
    pieces = []
    for num_wraps, position, num_rows in _pieces(span, start, count):
        rows = stream.take(position, num_rows)
        # A row that fills up a batch is drawn anew: its noise is not that of its first time.
        pieces.append(rows._replace(visit=rows.visit + (num_wraps << 32)) if num_wraps else rows)
    return join_rows(pieces)


def _pieces(span: EpochSpan, start: int, count: int) -> Iterator[tuple[int, int, int]]:
    while count:
        num_wraps, local = divmod(start, span.num_rows)
        num_rows = min(count, span.num_rows - local)
        yield num_wraps, span.first + local, num_rows
        start, count = start + num_rows, count - num_rows


def _require_a_batch(parts: PlanParts) -> None:
    rows = [
        0.0 if is_left_out(bucket, parts.settings) else stream.rows_per_pass
        for bucket, stream in zip(parts.buckets, parts.streams, strict=True)
    ]
    if parts.shares is not None:
        rows = [sum(rows) * share / SHARE_ONE for share in parts.shares]
    if all(count < size for count, size in zip(rows, parts.sizes, strict=True)):
        raise ConfigError(
            f"batch plan: none of {len(rows)} buckets has rows for one batch of "
            f"{min(parts.sizes)} in an epoch, the largest has {max(rows):.0f}; make "
            'global_batch_size smaller, merge buckets, or choose remainder = "carry" or "repeat"'
        )


def _rows_before(parts: PlanParts, epoch: int) -> list[int]:
    """How many rows of each stream belong to the epochs before ``epoch``."""
    rows = [
        0 if is_left_out(bucket, parts.settings) else stream.rows_before(epoch)
        for bucket, stream in zip(parts.buckets, parts.streams, strict=True)
    ]
    if parts.shares is None:
        return rows
    return [sum(rows) * share // SHARE_ONE for share in parts.shares]
