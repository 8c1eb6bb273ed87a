"""The global batch plan: which rows form which batch, for every rank and after every restart.

A plan is a pure function of the manifest, the settings and the epoch. How many ranks there are is
no part of it: a rank takes its slices of each batch, so one number, the batches done, is all that
a training run must remember of its data, whatever its world size was or will be.

    settings = PlanSettings(seed=0, global_batch_size=2048)
    for batch in plan_batches(manifest_of(["s3://bucket/samples"]), settings, start=num_done):
        for unit, row in rank_slices(batch, rank, world_size, micro_batch_size): ...

Each batch is within one bucket; buckets come in random order, each as often in an epoch as it has
batches. See ``plan_order`` for the rows of a bucket, ``plan_spans`` for the ends of epochs.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import Bucket
from sdxl_core.data.manifest import SampleManifest, manifest_of
from sdxl_core.data.plan_batch import GlobalBatch, rank_positions, rank_slices
from sdxl_core.data.plan_coverage import Coverage, coverage_of
from sdxl_core.data.plan_order import random_numbers
from sdxl_core.data.plan_settings import PlanSettings, Remainder
from sdxl_core.data.plan_spans import PlanParts, epoch_spans, plan_parts, take_from_span

__all__ = [
    "Coverage",
    "EpochPlan",
    "GlobalBatch",
    "PlanSettings",
    "Remainder",
    "SampleManifest",
    "epoch_of",
    "manifest_of",
    "plan_batches",
    "plan_epoch",
    "rank_positions",
    "rank_slices",
]

# The low bits of a random number give way to the number of a bucket.
_BUCKET_BITS = np.uint64(0xFFFF)


class EpochPlan:
    """The batches of one epoch; made by ``plan_epoch``.

    It holds some bytes for each unit and each batch, nothing for a row.

    Attributes:
        epoch: from 0.
        buckets: of the manifest, (height, width) in pixels.
        bucket_of_batch: place in ``buckets`` of each batch's bucket, uint16[num_batches].
    """

    def __init__(self, parts: PlanParts, epoch: int) -> None:
        self.epoch = epoch
        self.buckets = parts.buckets
        self._parts = parts
        self._spans = epoch_spans(parts, epoch)
        num_batches = [span.num_batches for span in self._spans]
        self.bucket_of_batch = _interleave(num_batches, parts.settings.seed, epoch)

    @property
    def num_batches(self) -> int:
        """Global batches of the epoch; with ``carry`` there may be epochs without any."""
        return len(self.bucket_of_batch)

    def batch_size_of(self, bucket: Bucket) -> int:
        """Rows in a global batch of ``bucket`` (height, width)."""
        return self._parts.sizes[self.buckets.index(bucket)]

    def batches(self, start: int = 0) -> Iterator[GlobalBatch]:
        """Batches ``start`` (from 0) to the last; to begin late costs no more than to begin.

        Raises:
            ConfigError: ``start`` is not within the epoch.
        """
        if not 0 <= start <= self.num_batches:
            raise ConfigError(
                f"epoch {self.epoch}: batch {start} was asked for, expected 0 to "
                f"{self.num_batches}; is this the plan that the run was begun with?"
            )
        return self._batches(start)

    def coverage(self) -> Coverage:
        """How often the epoch sees the rows of each bucket."""
        return coverage_of(self._parts, self._spans)

    def _batches(self, start: int) -> Iterator[GlobalBatch]:
        done = np.bincount(self.bucket_of_batch[:start], minlength=len(self.buckets)).tolist()
        for index in range(start, self.num_batches):
            number = int(self.bucket_of_batch[index])
            stream, size = self._parts.streams[number], self._parts.sizes[number]
            rows = take_from_span(stream, self._spans[number], done[number] * size, size)
            done[number] += 1
            yield GlobalBatch(
                index=index,
                epoch=self.epoch,
                bucket=self.buckets[number],
                unit=rows.unit,
                row=rows.row,
                visit=rows.visit,
            )


def plan_epoch(
    manifest: SampleManifest,
    settings: PlanSettings,
    epoch: int,
    *,
    world_batch_multiple: int = 1,
) -> EpochPlan:
    """The plan of one epoch. Equal arguments give equal plans, everywhere and at any time.

    Args:
        manifest: what there is to train on.
        settings: what the plan is to be like.
        epoch: from 0.
        world_batch_multiple: what every batch size must be a multiple of: ranks times micro-batch
            size. With ``area_scaled_batches`` it decides sizes, hence it must stay the same
            throughout a run, and other world sizes must divide it.

    Raises:
        ConfigError: settings that do not fit the manifest.
    """
    if epoch < 0:
        raise ConfigError(f"epoch: found {epoch}, expected 0 or more")
    parts = plan_parts(manifest, settings, world_batch_multiple=world_batch_multiple)
    return EpochPlan(parts, epoch)


def epoch_of(
    manifest: SampleManifest,
    settings: PlanSettings,
    num_done: int,
    *,
    world_batch_multiple: int = 1,
) -> tuple[int, int]:
    """Where a run stands that has done ``num_done`` global batches: its epoch, and the place in it.

    The place is that of the next batch, never the end of an epoch.

    Raises:
        ConfigError: settings that do not fit the manifest.
    """
    parts = plan_parts(manifest, settings, world_batch_multiple=world_batch_multiple)
    return _place(parts, num_done)


def plan_batches(
    manifest: SampleManifest,
    settings: PlanSettings,
    *,
    start: int = 0,
    world_batch_multiple: int = 1,
) -> Iterator[GlobalBatch]:
    """Batches without an end, epoch after epoch, after the first ``start``.

    Raises:
        ConfigError: settings that do not fit the manifest.
    """
    parts = plan_parts(manifest, settings, world_batch_multiple=world_batch_multiple)
    epoch, index = _place(parts, start)
    while True:
        yield from EpochPlan(parts, epoch).batches(index)
        epoch, index = epoch + 1, 0


def _place(parts: PlanParts, num_done: int) -> tuple[int, int]:
    if num_done < 0:
        raise ConfigError(f"batches done: found {num_done}, expected 0 or more")
    epoch = 0
    while (num_batches := sum(span.num_batches for span in epoch_spans(parts, epoch))) <= num_done:
        epoch, num_done = epoch + 1, num_done - num_batches
    return epoch, num_done


def _interleave(num_batches: list[int], seed: int, epoch: int) -> npt.NDArray[np.uint16]:
    """Draws from all batches without replacement until none is left; a bucket's number for each."""
    drawn = random_numbers(f"buckets {seed} {epoch}", sum(num_batches))
    drawn &= ~_BUCKET_BITS
    drawn |= np.repeat(np.arange(len(num_batches), dtype=np.uint64), num_batches)
    drawn.sort()
    return (drawn & _BUCKET_BITS).astype(np.uint16)
