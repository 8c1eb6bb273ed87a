"""A bucket's stream is the same from wherever it is read, and its shuffles are fair."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.data.plan_order import BucketStream, permutation, splitmix64


def stream_of(
    rows: list[int], *, datasets: list[int] | None = None, weights: tuple[float, ...] = (1.0,)
) -> BucketStream:
    return BucketStream(
        seed=0,
        bucket=(64, 64),
        unit_U=np.arange(len(rows), dtype=np.int32) * 10,
        rows_U=np.array(rows, np.int32),
        dataset_U=np.array(datasets or [0] * len(rows), np.int16),
        dataset_weights=weights,
        window_units=2,
    )


streams = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=8).map(
    lambda units: stream_of(
        [rows for rows, _ in units], datasets=[d for _, d in units], weights=(1.0, 0.3, 2.5)
    )
)


@given(stream=streams, start=st.integers(0, 200), count=st.integers(1, 60))
def test_position_alone_decides_what_stands_there(
    stream: BucketStream, start: int, count: int
) -> None:
    at_once = stream.take(start, count)
    singly = [stream.take(position, 1) for position in reversed(range(start, start + count))]
    for name in ("unit", "row", "visit"):
        one_by_one = [int(getattr(rows, name)[0]) for rows in reversed(singly)]
        assert getattr(at_once, name).tolist() == one_by_one


@given(stream=streams, number=st.integers(0, 12))
def test_pass_holds_all_rows_of_each_unit_as_often_as_it_is_due(
    stream: BucketStream, number: int
) -> None:
    start, stop = stream.rows_before(number), stream.rows_before(number + 1)
    due_U = stream.visits_before(number + 1) - stream.visits_before(number)
    seen: Counter[tuple[int, int]] = Counter()
    if stop > start:
        rows = stream.take(start, stop - start)
        seen.update(zip(rows.unit.tolist(), rows.row.tolist(), strict=True))
        assert stream.pass_at(start) == stream.pass_at(stop - 1) == number
    assert seen == Counter(
        {
            (unit, row): due
            for unit, num_rows, due in zip(
                stream.unit_U.tolist(), stream.rows_U.tolist(), due_U.tolist(), strict=True
            )
            for row in range(num_rows)
            if due
        }
    )


@given(number=st.integers(0, 10_000), weight=st.sampled_from([0.1, 0.5, 1 / 3, 1.0, 2.5, 7.0]))
def test_units_of_a_dataset_take_turns(number: int, weight: float) -> None:
    """After any number of passes no unit is more than one visit ahead of another."""
    stream = stream_of([1] * 12, weights=(weight,))
    visits_U = stream.visits_before(number)
    assert visits_U.max() - visits_U.min() <= 1
    assert abs(visits_U.sum() - 12 * number * weight) <= 1 + 1e-6


def test_rows_are_mixed_within_a_window_and_not_beyond() -> None:
    stream = stream_of([50] * 8)
    units = stream.take(0, 400).unit.reshape(4, 100)
    assert [len(set(window)) for window in units.tolist()] == [2, 2, 2, 2]
    changes = np.count_nonzero(units[:, 1:] != units[:, :-1])
    assert abs(changes - 4 * 50) < 4 * math.sqrt(4 * 99 / 4)  # as of fair coins


def test_passes_of_one_bucket_and_buckets_of_one_seed_have_unlike_orders() -> None:
    stream = stream_of([1] * 30)
    passes = {tuple(stream.take(30 * number, 30).unit.tolist()) for number in range(5)}
    assert len(passes) == 5
    other = BucketStream(
        seed=0,
        bucket=(64, 96),
        unit_U=stream.unit_U,
        rows_U=stream.rows_U,
        dataset_U=np.zeros(30, np.int16),
        dataset_weights=(1.0,),
        window_units=2,
    )
    assert tuple(other.take(0, 30).unit.tolist()) not in passes


def test_splitmix64_gives_the_published_numbers() -> None:
    """Of the reference implementation, prng.di.unimi.it/splitmix64.c, from the state 1234567."""
    assert splitmix64(1234567, 5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_order_is_equally_likely(count: int) -> None:
    num_orders, num_keys = math.factorial(count), 4000
    found = Counter(tuple(permutation(f"key {key}", count).tolist()) for key in range(num_keys))
    expected = num_keys / num_orders
    chi_square = sum((times - expected) ** 2 / expected for times in found.values())
    assert len(found) == num_orders
    freedom = num_orders - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


@given(key=st.text(), count=st.integers(0, 100))
def test_shuffle_loses_nothing(key: str, count: int) -> None:
    assert sorted(permutation(key, count).tolist()) == list(range(count))
