"""Ends of epochs: rows that fill no batch are carried, dropped or filled up, as is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.data.plan import PlanSettings, Remainder, SampleManifest, epoch_of, plan_epoch
from tests.sdxl_core.data.manifests import (
    BUCKETS,
    WEIGHTS,
    all_rows,
    even_manifest,
    first_batches,
    make_manifest,
    manifests,
    needs_a_bucket,
    plan_settings,
    rows_of,
)


@given(manifest=manifests(), batch_size=st.integers(1, 20), window_units=st.integers(1, 5))
def test_carried_rows_are_seen_exactly_once_in_each_pass(
    manifest: SampleManifest, batch_size: int, window_units: int
) -> None:
    settings = PlanSettings(
        seed=3, global_batch_size=batch_size, remainder="carry", window_units=window_units
    )
    plans = [plan_epoch(manifest, settings, epoch) for epoch in range(4)]
    for number, bucket in enumerate(BUCKETS):
        rows = all_rows(manifest, number)
        stream = [
            row
            for plan in plans
            for batch in plan.batches()
            if batch.bucket == bucket
            for row in rows_of(batch)
        ]
        # Four epochs are four passes, less what is carried into the fifth.
        assert 0 <= 4 * len(rows) - len(stream) < batch_size
        for start in range(0, len(stream), max(1, len(rows))):
            one_pass = stream[start : start + len(rows)]
            assert len(set(one_pass)) == len(one_pass)
            assert set(one_pass) <= rows


@pytest.mark.parametrize(
    ("remainder", "num_batches", "unseen", "repeated"),
    [("drop", 10, 9, 0), ("repeat", 12, 0, 11), ("carry", 10, 9, 0)],
)
def test_rows_that_fill_no_batch_are_dropped_carried_or_filled_up(
    remainder: Remainder, num_batches: int, unseen: int, repeated: int
) -> None:
    """Buckets of 55 and 54 rows in batches of 10."""
    manifest = make_manifest([(0, 5, 0)] * 11 + [(1, 6, 0)] * 9)
    settings = PlanSettings(seed=0, global_batch_size=10, remainder=remainder, window_units=2)
    plan = plan_epoch(manifest, settings, 0)
    coverage = plan.coverage()
    found = (plan.num_batches, coverage.num_unseen, coverage.num_repeated)
    assert found == (num_batches, unseen, repeated)
    if remainder == "carry":
        epochs = [plan_epoch(manifest, settings, epoch).num_batches for epoch in range(10)]
        assert sum(epochs) == 10 * 109 // 10
        assert {10, 11} <= set(epochs) <= {10, 11, 12}


def test_last_batch_is_filled_with_the_first_rows_of_the_epoch() -> None:
    manifest = make_manifest([(0, 7, 0), (0, 7, 0)])
    settings = PlanSettings(seed=0, global_batch_size=10, remainder="repeat", window_units=1)
    for epoch in range(3):
        first, last = plan_epoch(manifest, settings, epoch).batches()
        assert rows_of(last)[4:] == rows_of(first)[:6]
        assert set(last.visit[4:].tolist()).isdisjoint(first.visit.tolist())


@given(manifest=manifests(weights=WEIGHTS), settings=plan_settings(remainders="carry repeat"))
def test_no_visit_of_a_row_is_numbered_like_another(
    manifest: SampleManifest, settings: PlanSettings
) -> None:
    needs_a_bucket(manifest, settings)
    batches = first_batches(manifest, settings, 40)
    visits = [
        (*row, visit)
        for batch in batches
        for row, visit in zip(rows_of(batch), batch.visit.tolist(), strict=True)
    ]
    assert len(set(visits)) == len(visits)
    assert min(visit for _, _, visit in visits) >= 0


def test_end_of_an_epoch_is_the_beginning_of_the_next() -> None:
    manifest = even_manifest([40, 40], unit_rows=4)
    settings = PlanSettings(seed=0, global_batch_size=8)
    assert plan_epoch(manifest, settings, 0).num_batches == 10
    assert [epoch_of(manifest, settings, n) for n in (0, 9, 10, 35)] == [
        (0, 0),
        (0, 9),
        (1, 0),
        (3, 5),
    ]


def test_epoch_without_a_batch_is_passed_over() -> None:
    manifest = make_manifest([(0, 5, 0)])
    settings = PlanSettings(seed=0, global_batch_size=12)
    assert [plan_epoch(manifest, settings, epoch).num_batches for epoch in range(5)] == [
        *(0, 0, 1, 0, 1)
    ]
    assert epoch_of(manifest, settings, 0) == (2, 0)
    assert first_batches(manifest, settings, 2)[1].epoch == 4


def test_epoch_that_drops_all_of_its_rows_is_passed_over() -> None:
    """The only unit is in every second pass."""
    manifest = make_manifest([(0, 8, 0)], weights=(0.5,))
    settings = PlanSettings(seed=0, global_batch_size=4, remainder="drop")
    epochs = [plan_epoch(manifest, settings, epoch).num_batches for epoch in range(6)]
    assert epochs == [0, 2, 0, 2, 0, 2]
    assert epoch_of(manifest, settings, 5) == (5, 1)
