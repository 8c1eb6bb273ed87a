"""Manifests to plan with: a few units of any sizes, in a few buckets and datasets."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from sdxl_core.data.plan import GlobalBatch, PlanSettings, SampleManifest, plan_batches

WEIGHTS = (1.0, 0.5, 2.25)  # of three datasets
BUCKETS = ((64, 64), (64, 96), (96, 64), (128, 128))


def make_manifest(
    units: Sequence[tuple[int, int, int]], *, weights: tuple[float, ...] = (1.0,)
) -> SampleManifest:
    """A manifest with a unit for each (bucket number, rows, dataset number)."""
    columns = np.array(units, np.int32).reshape(-1, 3)
    return SampleManifest(
        buckets=BUCKETS,
        files=("samples.parquet",),
        unit_bucket=columns[:, 0].copy(),
        unit_file=np.zeros(len(columns), np.int32),
        unit_index=np.arange(len(columns), dtype=np.int32),
        unit_rows=columns[:, 1].copy(),
        unit_dataset=columns[:, 2].astype(np.int16),
        dataset_weights=weights,
    )


def even_manifest(
    rows_of_bucket: Sequence[int], *, unit_rows: int, weights: tuple[float, ...] = (1.0,)
) -> SampleManifest:
    """So many rows in each bucket, in units of ``unit_rows``, of the datasets in turn."""
    counts = [rows // unit_rows for rows in rows_of_bucket]
    units = [
        (bucket, unit_rows, unit % len(weights))
        for bucket, count in enumerate(counts)
        for unit in range(count)
    ]
    return make_manifest(units, weights=weights)


@st.composite
def manifests(draw: st.DrawFn, *, weights: tuple[float, ...] = (1.0,)) -> SampleManifest:
    unit = st.tuples(
        st.integers(0, len(BUCKETS) - 1), st.integers(1, 9), st.integers(0, len(weights) - 1)
    )
    return make_manifest(draw(st.lists(unit, min_size=1, max_size=40)), weights=weights)


@st.composite
def plan_settings(
    draw: st.DrawFn, *, batch_sizes: Sequence[int] = (1, 4, 12), remainders: str = "carry repeat"
) -> PlanSettings:
    is_weighted = draw(st.booleans())
    weight = st.sampled_from([0.0, 0.3, 1.0, 4.0])
    return PlanSettings(
        seed=draw(st.integers(-5, 5)),
        global_batch_size=draw(st.sampled_from(batch_sizes)),
        area_scaled_batches=draw(st.booleans()),
        bucket_weights=(
            {bucket: draw(weight) for bucket in BUCKETS[:3]} | {BUCKETS[3]: 1.0}
            if is_weighted
            else None
        ),
        bucket_temperature=draw(st.sampled_from([1.0, 2.0])),
        remainder=draw(st.sampled_from(remainders.split())),  # type: ignore[arg-type]
        window_units=draw(st.integers(1, 5)),
    )


def rows_of(batch: GlobalBatch) -> list[tuple[int, int]]:
    return list(zip(batch.unit.tolist(), batch.row.tolist(), strict=True))


def times_seen(batches: Iterable[GlobalBatch]) -> Counter[tuple[int, int]]:
    return Counter(row for batch in batches for row in rows_of(batch))


def all_rows(manifest: SampleManifest, bucket: int | None = None) -> set[tuple[int, int]]:
    return {
        (unit, row)
        for unit, count in enumerate(manifest.unit_rows.tolist())
        if bucket is None or manifest.unit_bucket[unit] == bucket
        for row in range(count)
    }


def first_batches(
    manifest: SampleManifest, settings: PlanSettings, count: int, start: int = 0
) -> list[GlobalBatch]:
    return list(itertools.islice(plan_batches(manifest, settings, start=start), count))


def needs_a_bucket(manifest: SampleManifest, settings: PlanSettings) -> None:
    """Hypothesis may leave out each bucket that has rows."""
    weights = settings.bucket_weights or {}
    assume(any(weights.get(BUCKETS[number], 1.0) for number in set(manifest.unit_bucket.tolist())))
