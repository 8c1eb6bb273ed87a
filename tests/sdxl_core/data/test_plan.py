"""The batch plan: one sequence of batches, whoever asks, from wherever, with however many ranks."""

import dataclasses
import math
import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.plan import (
    GlobalBatch,
    PlanSettings,
    SampleManifest,
    epoch_of,
    plan_batches,
    plan_epoch,
    rank_slices,
)
from tests.sdxl_core.data.manifests import (
    BUCKETS,
    WEIGHTS,
    even_manifest,
    first_batches,
    make_manifest,
    manifests,
    needs_a_bucket,
    plan_settings,
    rows_of,
)


def same(one: GlobalBatch, other: GlobalBatch) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(one)
    )


@hypothesis.settings(max_examples=25)
@given(
    manifest=manifests(weights=WEIGHTS), settings=plan_settings(batch_sizes=(12,)), data=st.data()
)
def test_ranks_consume_exactly_the_plan_whatever_their_number_and_however_often_they_are_killed(
    manifest: SampleManifest, settings: PlanSettings, data: st.DataObject
) -> None:
    """Each rank of each start makes its own plan. A batch that a kill cut short is done again."""
    needs_a_bucket(manifest, settings)
    consumed: list[list[tuple[int, int]]] = []
    for _ in range(data.draw(st.integers(1, 5), "starts")):
        world_size = data.draw(st.sampled_from([1, 2, 3, 4, 6, 12]), "world size")
        micro_batch = data.draw(
            st.sampled_from([m for m in (1, 2, 3, 4, 6, 12) if 12 % (m * world_size) == 0])
        )
        num_before_kill = data.draw(st.integers(0, 6), "batches before the kill")
        ranks = [
            plan_batches(manifest, settings, start=len(consumed), world_batch_multiple=12)
            for _ in range(world_size)
        ]
        for _ in range(num_before_kill):
            slices = [
                rank_slices(next(plan), rank, world_size, micro_batch)
                for rank, plan in enumerate(ranks)
            ]
            steps = zip(*slices, strict=True)  # accumulation steps, each with all ranks in order
            consumed.append(
                [
                    row
                    for step in steps
                    for unit, rows in step
                    for row in zip(unit.tolist(), rows.tolist(), strict=True)
                ]
            )
    plan = plan_batches(manifest, settings, world_batch_multiple=12)
    assert consumed == [rows_of(next(plan)) for _ in consumed]


@given(manifest=manifests(weights=WEIGHTS), settings=plan_settings(), data=st.data())
def test_seeking_gives_what_iterating_gives(
    manifest: SampleManifest, settings: PlanSettings, data: st.DataObject
) -> None:
    needs_a_bucket(manifest, settings)
    straight = first_batches(manifest, settings, 30)
    start = data.draw(st.integers(0, 29))
    sought = first_batches(manifest, settings, 30 - start, start=start)
    assert all(map(same, sought, straight[start:]))

    epoch, index = epoch_of(manifest, settings, start)
    assert (epoch, index) == (straight[start].epoch, straight[start].index)
    batches = plan_epoch(manifest, settings, epoch).batches(index)
    assert same(next(batches), straight[start])


@given(manifest=manifests(), settings=plan_settings(remainders="drop carry repeat"))
def test_batches_are_of_one_bucket_and_of_its_size(
    manifest: SampleManifest, settings: PlanSettings
) -> None:
    needs_a_bucket(manifest, settings)
    try:
        plan = plan_epoch(manifest, settings, 1)
    except ConfigError:
        assert settings.remainder == "drop"  # too few rows for one batch
        return
    batches = list(plan.batches())
    assert [batch.index for batch in batches] == list(range(plan.num_batches))
    assert plan.bucket_of_batch.dtype == np.uint16
    for batch, number in zip(batches, plan.bucket_of_batch.tolist(), strict=True):
        assert batch.bucket == BUCKETS[number]
        assert set(manifest.unit_bucket[batch.unit].tolist()) == {number}
        assert (batch.row < manifest.unit_rows[batch.unit]).all()
        assert batch.num_rows == plan.batch_size_of(batch.bucket)
        assert (batch.unit.dtype, batch.row.dtype) == (np.int32, np.int32)


@given(settings=plan_settings(batch_sizes=(4,)))
def test_equal_arguments_give_equal_plans_and_other_seeds_and_epochs_others(
    settings: PlanSettings,
) -> None:
    manifest = even_manifest([40, 40, 40, 40], unit_rows=4)
    batches, again = (list(plan_epoch(manifest, settings, 2).batches()) for _ in range(2))
    assert all(map(same, batches, again))
    assert len(batches) == len(again)

    def order(settings: PlanSettings, epoch: int) -> list[list[tuple[int, int]]]:
        return [rows_of(batch) for batch in plan_epoch(manifest, settings, epoch).batches()]

    others = [
        order(settings, 3),
        order(dataclasses.replace(settings, seed=settings.seed + 1), 2),
        order(dataclasses.replace(settings, window_units=settings.window_units + 1), 2),
    ]
    assert order(settings, 2) not in others


def test_buckets_of_two_epochs_come_in_another_order() -> None:
    manifest = even_manifest([80, 80], unit_rows=4)
    settings = PlanSettings(seed=0, global_batch_size=8)
    orders = {
        tuple(plan_epoch(manifest, settings, epoch).bucket_of_batch.tolist()) for epoch in range(9)
    }
    assert len(orders) == 9


def test_plan_is_the_same_in_every_version() -> None:
    """A change here makes every run that was begun before see other rows after a resume."""
    manifest = make_manifest([(0, 3, 0), (1, 2, 0), (0, 2, 1), (1, 4, 1)], weights=(1.0, 1.5))
    settings = PlanSettings(seed=7, global_batch_size=3, bucket_temperature=2.0, window_units=2)
    found = [(b.epoch, b.bucket, rows_of(b)) for b in first_batches(manifest, settings, 4, start=5)]
    assert found == [
        (1, (64, 96), [(3, 2), (3, 1), (3, 3)]),
        (1, (64, 64), [(2, 1), (2, 1), (2, 0)]),
        (1, (64, 96), [(1, 0), (3, 0), (1, 1)]),
        (1, (64, 96), [(3, 0), (3, 3), (3, 1)]),
    ]


def test_thin_bucket_is_drawn_at_any_place_of_the_epoch() -> None:
    """The mean place of 5 of 105 draws without replacement is 52 with a deviation of 13.3."""
    manifest = even_manifest([800, 40], unit_rows=8)
    settings = PlanSettings(seed=0, global_batch_size=8)
    means = [
        np.flatnonzero(plan_epoch(manifest, settings, epoch).bucket_of_batch == 1).mean()
        for epoch in range(200)
    ]
    assert abs(np.mean(means) - 52) < 4 * 13.3 / math.sqrt(200)
    assert 0.8 < np.std(means) / 13.3 < 1.2


def test_every_row_is_equally_likely_to_come_early() -> None:
    """Of 64 rows each is among the first 16 of a pass with probability 1/4, and with few others."""
    manifest = even_manifest([64], unit_rows=4)
    settings = PlanSettings(seed=0, global_batch_size=16, window_units=3)
    num_epochs = 600
    early = np.zeros((16, 4))
    for epoch in range(num_epochs):
        batch = next(plan_epoch(manifest, settings, epoch).batches())
        np.add.at(early, (batch.unit, batch.row), 1)
    deviation = math.sqrt(num_epochs * 0.25 * 0.75)
    assert np.abs(early - num_epochs / 4).max() < 4.5 * deviation


def test_rows_of_a_batch_lie_in_few_units() -> None:
    manifest = even_manifest([6400], unit_rows=16)
    settings = PlanSettings(seed=0, global_batch_size=128, window_units=8)
    for batch in plan_epoch(manifest, settings, 0).batches():
        assert len(set(batch.unit.tolist())) == 8  # a batch is a window here


def test_memory_grows_with_units_and_not_with_rows() -> None:
    peaks = []
    for scale in (1, 1000):
        manifest = even_manifest([200_000 * scale], unit_rows=20 * scale)
        settings = PlanSettings(seed=0, global_batch_size=100 * scale, window_units=1)
        tracemalloc.start()
        try:
            plan = plan_epoch(manifest, settings, 1)
            coverage = plan.coverage()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert coverage.num_once == manifest.num_rows
    assert peaks[1] < 2 * peaks[0]


def test_place_outside_of_the_epoch_is_refused() -> None:
    plan = plan_epoch(
        even_manifest([40], unit_rows=4), PlanSettings(seed=0, global_batch_size=8), 0
    )
    assert list(plan.batches(5)) == []
    with pytest.raises(ConfigError, match="batch 6 was asked for, expected 0 to 5"):
        plan.batches(6)
