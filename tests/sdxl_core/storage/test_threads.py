"""Work by several threads: results in order, items taken only as they are needed."""

import itertools
import random
import threading
import time
from collections.abc import Iterator

import pytest

from sdxl_core.storage.threads import map_in_order


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_square(number: int) -> int:
        time.sleep(random.Random(number).random() / 200)
        return number * number

    assert list(map_in_order(slow_square, range(50), num_threads=8)) == [n * n for n in range(50)]


def test_items_are_taken_only_a_little_ahead_of_the_results() -> None:
    taken = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    results = map_in_order(lambda number: number, endless(), num_threads=2)
    first = list(itertools.islice(results, 5))
    results.close()  # type: ignore[attr-defined]

    assert first == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 4 * 2


def test_first_error_ends_it() -> None:
    def inverse(number: int) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        list(map_in_order(inverse, [2, 1, 0, 1], num_threads=2))


def test_leaving_early_waits_for_no_thread() -> None:
    """The garbage collector may leave it, within any thread's own start: waiting never ends."""
    begun, gate = threading.Event(), threading.Event()

    def held_up(number: int) -> int:
        if number:
            begun.set()
            assert gate.wait(20)
        return number

    results = map_in_order(held_up, range(9), num_threads=1, num_ahead=2)
    assert next(results) == 0
    assert begun.wait(20)
    started = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 10
    gate.set()


def test_an_error_waits_for_the_calls_that_have_begun() -> None:
    begun, ended = threading.Event(), []

    def call(number: int) -> None:
        if number == 0:
            assert begun.wait(20)
            raise ZeroDivisionError
        begun.set()
        time.sleep(0.2)
        ended.append(number)

    with pytest.raises(ZeroDivisionError):
        list(map_in_order(call, range(2), num_threads=2, num_ahead=2))
    assert ended == [1]


def test_no_items_give_no_results() -> None:
    assert list(map_in_order(str, [], num_threads=4)) == []
