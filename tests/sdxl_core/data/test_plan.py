"""The batch plan: one sequence of batches, whoever asks, from wherever and with however many ranks.

Rows are told apart by (unit, row); a brute-force count over all batches is the oracle for what is
computed without looking at rows.
"""

import dataclasses
import itertools
import math
import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.plan import (
    GlobalBatch,
    PlanSettings,
    Remainder,
    SampleManifest,
    epoch_of,
    plan_batches,
    plan_epoch,
    rank_positions,
    rank_slices,
)
from tests.sdxl_core.data.manifests import (
    BUCKETS,
    all_rows,
    even_manifest,
    make_manifest,
    manifests,
    plan_settings,
    rows_of,
    times_seen,
)

WEIGHTS = (1.0, 0.5, 2.25)


def same(one: GlobalBatch, other: GlobalBatch) -> bool:
    return all(
        np.array_equal(getattr(one, field.name), getattr(other, field.name))
        for field in dataclasses.fields(one)
    )


def first_batches(
    manifest: SampleManifest, settings: PlanSettings, count: int, start: int = 0
) -> list[GlobalBatch]:
    return list(itertools.islice(plan_batches(manifest, settings, start=start), count))


def needs_a_bucket(manifest: SampleManifest, settings: PlanSettings) -> None:
    """Hypothesis may leave out each bucket that has rows."""
    weights = settings.bucket_weights or {}
    assume(any(weights.get(BUCKETS[number], 1.0) for number in set(manifest.unit_bucket.tolist())))


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


@given(
    manifest=manifests(weights=WEIGHTS),
    settings=plan_settings(remainders="drop carry repeat"),
    epoch=st.integers(0, 3),
)
def test_coverage_is_what_counting_every_row_gives(
    manifest: SampleManifest, settings: PlanSettings, epoch: int
) -> None:
    needs_a_bucket(manifest, settings)
    try:
        plan = plan_epoch(manifest, settings, epoch)
    except ConfigError:
        assume(False)
    seen = times_seen(plan.batches())
    coverage = plan.coverage()
    for number, found in enumerate(coverage.buckets):
        times = [seen[row] for row in all_rows(manifest, number)]
        assert found.bucket == BUCKETS[number]
        assert found.num_rows == len(times)
        assert found.num_unseen == times.count(0)
        assert found.num_once == times.count(1)
        assert found.num_repeated == len(times) - times.count(0) - times.count(1)
        assert found.num_drawn == sum(times)
    assert coverage.num_rows == manifest.num_rows
    assert coverage.num_batches == plan.num_batches


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


# Statistics


@pytest.mark.parametrize("temperature", [1.0, 2.0, math.inf])
def test_buckets_have_the_shares_that_weights_and_temperature_give_them(
    temperature: float,
) -> None:
    rows = (4000, 400, 40, 2000)
    manifest = even_manifest(rows, unit_rows=8)
    weights = {BUCKETS[0]: 0.5, BUCKETS[1]: 3.0, BUCKETS[3]: 0.0}
    settings = PlanSettings(
        seed=0, global_batch_size=8, bucket_weights=weights, bucket_temperature=temperature
    )
    wanted = np.array([0.5, 3.0, 1.0, 0.0]) * np.array(rows) ** (1 / temperature)
    wanted = wanted / wanted.sum() * (4000 + 400 + 40) / 8 * 5
    found = sum(
        np.bincount(plan_epoch(manifest, settings, epoch).bucket_of_batch, minlength=4)
        for epoch in range(5)
    )
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize("remainder", ["drop", "repeat", "carry"])
def test_buckets_that_have_no_weights_have_the_shares_of_their_rows(remainder: Remainder) -> None:
    manifest = even_manifest([800, 400, 80], unit_rows=8)
    settings = PlanSettings(seed=0, global_batch_size=8, remainder=remainder)
    plan = plan_epoch(manifest, settings, 1)
    assert np.bincount(plan.bucket_of_batch, minlength=4).tolist() == [100, 50, 10, 0]
    assert set(times_seen(plan.batches()).values()) == {1}


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


@pytest.mark.parametrize("weight", [2.0, 0.5, 0.3])
def test_weight_of_a_dataset_is_how_often_its_rows_come(weight: float) -> None:
    manifest = even_manifest([800], unit_rows=4, weights=(1.0, weight))
    settings = PlanSettings(seed=0, global_batch_size=20)
    num_epochs = 10
    seen = times_seen(
        batch
        for epoch in range(num_epochs)
        for batch in plan_epoch(manifest, settings, epoch).batches()
    )
    times = np.array([seen[row] for row in sorted(all_rows(manifest))]).reshape(-1, 2, 4)
    carried = 20  # rows of the last pass at most
    assert abs(times[:, 0].sum() - 400 * num_epochs) <= carried
    assert abs(times[:, 1].sum() - 400 * num_epochs * weight) <= carried + 4
    assert times[:, 1].max() <= math.ceil(num_epochs * weight)


# Sizes and slices


@given(
    size=st.integers(1, 40),
    multiple=st.integers(1, 8),
    buckets=st.lists(st.sampled_from(BUCKETS), min_size=1, unique=True),
)
def test_area_scaled_batches_hold_about_equally_many_pixels(
    size: int, multiple: int, buckets: list[tuple[int, int]]
) -> None:
    manifest = make_manifest([(BUCKETS.index(bucket), 5, 0) for bucket in buckets])
    settings = PlanSettings(seed=0, global_batch_size=size * multiple, area_scaled_batches=True)
    plan = plan_epoch(manifest, settings, 0, world_batch_multiple=multiple)
    budget_px = size * multiple * 128 * 128
    assert plan.batch_size_of((128, 128)) == size * multiple
    for height, width in BUCKETS:
        batch_size = plan.batch_size_of((height, width))
        assert batch_size % multiple == 0
        assert batch_size * height * width <= budget_px
        assert (batch_size + multiple) * height * width > budget_px


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


@pytest.mark.parametrize(
    ("rank", "world_size", "micro_batch", "expected"),
    [
        (0, 2, 3, [(0, 3), (6, 9)]),
        (1, 2, 3, [(3, 6), (9, 12)]),
        (2, 3, 4, [(8, 12)]),
        (0, 1, 12, [(0, 12)]),
    ],
)
def test_rank_takes_its_place_in_each_accumulation_step(
    rank: int, world_size: int, micro_batch: int, expected: list[tuple[int, int]]
) -> None:
    slices = rank_positions(12, rank, world_size, micro_batch)
    assert [(part.start, part.stop) for part in slices] == expected


# What is refused


@pytest.mark.parametrize(
    ("rank", "world_size", "micro_batch", "message"),
    [
        (0, 5, 1, "12 rows cannot be shared by 5 ranks with micro-batches of 1.*multiple of 5"),
        (0, 2, 4, "multiple of 8"),
        (0, 1, 24, "multiple of 24"),
        (2, 2, 1, "rank 2 of 2"),
        (0, 1, 0, "micro-batch of 0 rows"),
    ],
)
def test_ranks_that_cannot_share_a_batch_are_refused(
    rank: int, world_size: int, micro_batch: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rank_positions(12, rank, world_size, micro_batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size: found 0, expected at least 1"),
        ({"window_units": 0}, "window_units: found 0"),
        ({"bucket_temperature": 0.5}, "bucket_temperature: found 0.5, expected at least 1"),
        ({"bucket_temperature": math.nan}, "bucket_temperature: found nan"),
        ({"remainder": "keep"}, "remainder: found 'keep'.*carry"),
        ({"bucket_weights": {(64, 64): -1.0}}, "weight of bucket 64x64: found -1.0"),
        ({"bucket_weights": {(64, 65): 1.0}}, "found 64x65, expected .*64x64, 64x96"),
        ({"bucket_weights": dict.fromkeys(BUCKETS, 0.0)}, "nothing to train on"),
        ({"remainder": "drop", "global_batch_size": 64}, "none of 4 buckets.*one batch of 64"),
        ({"global_batch_size": 10}, "found 10, expected a multiple of 4"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    manifest = even_manifest([40, 40], unit_rows=4)
    fine: dict[str, object] = {"seed": 0, "global_batch_size": 8}
    with pytest.raises(ConfigError, match=message):
        plan_epoch(manifest, PlanSettings(**fine | changes), 0, world_batch_multiple=4)  # type: ignore[arg-type]


def test_place_outside_of_the_epoch_is_refused() -> None:
    plan = plan_epoch(
        even_manifest([40], unit_rows=4), PlanSettings(seed=0, global_batch_size=8), 0
    )
    assert list(plan.batches(5)) == []
    with pytest.raises(ConfigError, match="batch 6 was asked for, expected 0 to 5"):
        plan.batches(6)
