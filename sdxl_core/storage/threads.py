"""Many small reads or writes at once, in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(
    function: Callable[[T], R], items: Iterable[T], *, num_threads: int
) -> Iterator[R]:
    """``function`` of each item, in the order of the items, computed by ``num_threads`` threads.

    Unlike ``Executor.map`` it takes items only as results are consumed (at most four per thread
    ahead), so a million items or large results cost nothing. The first exception ends it.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 4 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
