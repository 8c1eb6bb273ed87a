"""Threads that prepare items for one consumer, as many as were measured to keep it busy."""

import dataclasses
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Medians over the last ones: a first call that compiles or allocates is soon forgotten.
_ITEMS_REMEMBERED, _CALLS_REMEMBERED = 128, 16
_CALLS_PER_LOOK = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """What was measured of late, and what was made of it.

    Args:
        prepare_s: seconds of processor time to prepare an item; 0 before anything was measured.
        consume_s: seconds that the consumer takes for an item, likewise.
        num_threads: that prepare items now.
        max_threads: that may.
    """

    prepare_s: float
    consume_s: float
    num_threads: int
    max_threads: int


class PacedThreads:
    """A pool of threads whose size follows what it measures; results do not depend on the size.

    An item that takes a thread three times as long as it takes the consumer needs three threads. It
    begins with one, and looks again after every fourth call of ``consumed``. Of a thread, its
    processor time counts: waiting for a core is no reason for still more threads. Several threads
    may use it at a time, if what they prepare goes to the same consumer.

    Args:
        max_threads: never more than these, >= 1. While the number changes, items that the former
            threads had been given are still finished by them.
    """

    def __init__(self, max_threads: int = 1) -> None:
        self._max_threads = max_threads
        self._lock = threading.Lock()
        self._prepare_s: deque[float] = deque(maxlen=_ITEMS_REMEMBERED)
        self._consume_s: deque[float] = deque(maxlen=_CALLS_REMEMBERED)
        self._num_calls = 0
        self._num_threads = 1
        self._pool = ThreadPoolExecutor(1)

    def map_in_order(
        self, function: Callable[[T], R], items: Iterable[T], *, num_ahead: int
    ) -> Iterator[R]:
        """``function`` of each item, in the order of the items.

        Args:
            function: prepares an item.
            items: taken only as results are consumed.
            num_ahead: results that wait for their consumer, at most; one item for each thread may
                be under way besides.

        Raises:
            whatever the first item that fails raises; items that were not begun are dropped.
        """
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(self._submit(function, item))
                while len(waiting) > num_ahead + self._num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def consumed(self, num_items: int, seconds: float) -> None:
        """To be told after each call of the consumer: its items and how long it was at them."""
        with self._lock:
            self._consume_s.append(seconds / num_items)
            self._num_calls += 1
            if self._num_calls % _CALLS_PER_LOOK == 0:
                self._resize()

    @property
    def pace(self) -> Pace:
        """What is known now."""
        with self._lock:
            return self._pace()

    def _pace(self) -> Pace:
        return Pace(
            prepare_s=statistics.median(self._prepare_s or (0.0,)),
            consume_s=statistics.median(self._consume_s or (0.0,)),
            num_threads=self._num_threads,
            max_threads=self._max_threads,
        )

    def _resize(self) -> None:
        pace = self._pace()
        needed = math.ceil(pace.prepare_s / max(pace.consume_s, 1e-9))
        num_threads = min(max(1, needed), self._max_threads)
        if num_threads != self._num_threads:
            self._pool.shutdown(wait=False)
            self._pool, self._num_threads = ThreadPoolExecutor(num_threads), num_threads

    def _submit(self, function: Callable[[T], R], item: T) -> "Future[R]":
        with self._lock:
            return self._pool.submit(self._timed, function, item)

    def _timed(self, function: Callable[[Any], R], item: Any) -> R:
        started = time.thread_time()
        result = function(item)
        seconds = time.thread_time() - started
        with self._lock:
            self._prepare_s.append(seconds)
        return result
