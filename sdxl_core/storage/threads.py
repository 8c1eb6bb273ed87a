"""Many small reads or writes at once, in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    num_threads: int,
    num_ahead: int | None = None,
) -> Iterator[R]:
    """``function`` of each item, in the order of the items, computed by ``num_threads`` threads.

    Unlike ``Executor.map`` it takes items only as results are consumed, so a million items or large
    results cost nothing. The first exception ends it, once the calls that have begun are over;
    whoever leaves early does not wait for them. Items are made by the thread that consumes.

    Args:
        function: of one item.
        items: taken one at a time.
        num_threads: that compute at the same time, > 0.
        num_ahead: items taken whose results are not consumed yet, at most; 2 with one thread is to
            make an item while the one before is worked on. None is four per thread.
    """
    num_ahead = num_ahead or 4 * num_threads
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except GeneratorExit:
        # Whoever left it may be the garbage collector, in any thread and in the middle of that
        # thread's own start or end: to wait for threads there can wait for ever.
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
