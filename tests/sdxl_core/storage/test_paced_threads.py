"""Threads that follow what they measure: how many there are, and that it changes nothing else."""

import itertools
import random
import threading
import time
from collections.abc import Iterator

import pytest

from sdxl_core.storage.paced_threads import PacedThreads

WORK_S = 0.004


def busy(number: int) -> int:
    """Takes a thread ``WORK_S`` of processor time, whatever else the machine does."""
    stop = time.thread_time() + WORK_S
    while time.thread_time() < stop:
        pass
    return number


def paced(max_threads: int, consume_s: float, *, num_items: int = 12) -> PacedThreads:
    """Threads that have prepared some items for a consumer of that speed."""
    threads = PacedThreads(max_threads)
    for _ in threads.map_in_order(busy, range(num_items), num_ahead=2):
        threads.consumed(1, consume_s)
    return threads


@pytest.mark.parametrize(
    ("consume_s", "max_threads", "expected"),
    [
        (1.0, 8, 1),  # a slow consumer needs no second thread
        (WORK_S * 1.5, 8, 1),
        (WORK_S / 1.5, 8, 2),
        (WORK_S / 3.5, 8, 4),
        (WORK_S / 3.5, 3, 3),  # no more than there may be
        (1e-12, 3, 3),
    ],
)
def test_threads_are_as_many_as_the_consumer_keeps_busy(
    consume_s: float, max_threads: int, expected: int
) -> None:
    pace = paced(max_threads, consume_s).pace
    assert pace.num_threads == expected
    assert pace.max_threads == max_threads
    assert pace.consume_s == pytest.approx(consume_s)
    assert WORK_S <= pace.prepare_s < 1.3 * WORK_S


def test_threads_become_fewer_again_when_the_consumer_slows_down() -> None:
    threads = paced(8, WORK_S / 3.5)
    for _ in range(20):
        threads.consumed(8, 8 * 1.0)
    assert threads.pace.num_threads == 1
    assert list(threads.map_in_order(busy, range(3), num_ahead=2)) == [0, 1, 2]


def test_first_call_that_takes_long_is_forgotten() -> None:
    threads = paced(8, WORK_S / 3.5, num_items=1)
    threads.consumed(1, 60.0)
    for _ in range(6):
        threads.consumed(1, WORK_S / 3.5)
    assert threads.pace.num_threads == 4


def test_no_more_items_are_prepared_at_a_time_than_there_are_threads() -> None:
    threads = paced(8, WORK_S / 2.5)
    lock, running, most = threading.Lock(), [0], [0]

    def watched(number: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.005)
        with lock:
            running[0] -= 1
        return number

    assert list(threads.map_in_order(watched, range(40), num_ahead=10)) == list(range(40))
    assert most[0] == threads.pace.num_threads == 3


def test_results_are_in_order_while_the_number_of_threads_changes() -> None:
    threads = PacedThreads(6)

    def slow(number: int) -> int:
        time.sleep(random.Random(number).random() / 200)
        return busy(number)

    found = []
    for number in threads.map_in_order(slow, range(60), num_ahead=5):
        threads.consumed(1, WORK_S / (1 + number // 10))
        found.append(number)
    assert found == list(range(60))
    assert threads.pace.num_threads > 1


def test_items_are_taken_so_many_ahead_and_one_for_each_thread() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    threads = PacedThreads(4)
    results = threads.map_in_order(lambda number: number, endless(), num_ahead=6)
    assert list(itertools.islice(results, 5)) == [0, 1, 2, 3, 4]
    results.close()  # type: ignore[attr-defined]
    assert len(taken) == 5 + 6 + 1


def test_first_error_ends_it_and_the_threads_are_there_for_others() -> None:
    threads = PacedThreads(2)

    def inverse(number: int) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        list(threads.map_in_order(inverse, [2, 1, 0, 1], num_ahead=2))
    assert list(threads.map_in_order(inverse, [2, 1], num_ahead=2)) == [0.5, 1.0]
    assert list(threads.map_in_order(inverse, [], num_ahead=2)) == []
