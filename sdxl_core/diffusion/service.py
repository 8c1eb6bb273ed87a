"""Engines behind a thread: callers on other threads hand in tasks and wait for futures.

One thread owns the engines and never does anything but ticks, so several callers (parts of a table,
say) fill the same slots: the rows of the next part take the places that the last rows of this part
leave.
"""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future

from sdxl_core.contract.errors import SdxlError
from sdxl_core.diffusion.engine import Engine, OutOfMemoryRow
from sdxl_core.diffusion.tasks import DenoiseResult, DenoiseTask

Outcome = DenoiseResult | OutOfMemoryRow


def fullest(engines: Mapping[str, Engine]) -> str | None:
    """The engine whose next call is fullest; None if there is nothing to do.

    Of equals it is the last, so that rows that are further along leave first.
    """
    fill = {name: engine.best_fill for name, engine in engines.items()}
    # max() keeps the first of equals; reversed makes that the later name.
    name = max(reversed(fill), key=fill.__getitem__)
    return name if fill[name] else None


class EngineService:
    """Runs named engines on one thread, always ticking the one whose next call is fullest.

    Args:
        engines: For example ``{"base": ..., "refiner": ...}`` when one device holds both.

    Use as a context manager, or call ``close``.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = dict(engines)
        self._inbox: queue.SimpleQueue[tuple[str, DenoiseTask, Future[Outcome]] | None] = (
            queue.SimpleQueue()
        )
        self._waiting: dict[tuple[str, str], Future[Outcome]] = {}
        self._num_accepted = 0
        self._loop: Future[None] = Future()
        self._loop.add_done_callback(self._fail_waiting)
        # A daemon: an executor's thread would keep a process alive whose owner forgot ``close``,
        # such as an actor that its cluster has dismissed.
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    def submit(self, name: str, task: DenoiseTask) -> Future[Outcome]:
        """Hands a task to the engine called ``name``; the future ends with its result.

        Keys need to be unique only among the tasks of one caller: the service keeps its own.

        Raises:
            Exception: in the future, if a network call failed; every waiting task then fails with
                that error.
        """
        if self._loop.done():
            # A stopped loop answers nobody; its own error is the best explanation.
            self._loop.result()
            raise RuntimeError("the engine service is closed")
        future: Future[Outcome] = Future()
        self._inbox.put((name, task, future))
        if self._loop.done():
            # The loop may have ended between the check and the put; nobody else would answer.
            self._fail_waiting(self._loop)
        return future

    @property
    def failed(self) -> bool:
        """Whether a network call failed and took the loop with it; a new service is needed then."""
        return self._loop.done() and self._loop.exception() is not None

    def close(self) -> None:
        """Finishes what was submitted, then stops the thread."""
        self._inbox.put(None)
        self._thread.join()

    def __enter__(self) -> "EngineService":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _live(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.push(self._end)
            self._run()

    def _end(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        """Hands the error of the loop, if there is one, to all who wait; they decide about it."""
        if error is None:
            self._loop.set_result(None)
        else:
            self._loop.set_exception(error)
        return True

    def _run(self) -> None:
        closing = False
        while not closing or self._waiting:
            closing = self._take_inbox(block=not self._waiting and not closing) or closing
            name = fullest(self.engines)
            if name is None:
                continue
            for outcome in self.engines[name].tick():
                self._waiting.pop((name, outcome.key)).set_result(outcome)

    def _take_inbox(self, *, block: bool) -> bool:
        """Moves submitted tasks into the engines; True once the service is told to close."""
        closing = False
        while True:
            try:
                item = self._inbox.get(block=block)
            except queue.Empty:
                return closing
            block = False
            if item is None:
                closing = True
                continue
            name, task, future = item
            self._accept(name, task, future)

    def _accept(self, name: str, task: DenoiseTask, future: Future[Outcome]) -> None:
        if not future.set_running_or_notify_cancel():
            return  # cancelled while it was queued; from here on it cannot be
        self._num_accepted += 1
        key = str(self._num_accepted)
        try:
            self.engines[name].submit(dataclasses.replace(task, key=key))
        except SdxlError as error:
            future.set_exception(error)
            return
        self._waiting[(name, key)] = future

    def _fail_waiting(self, loop: "Future[None]") -> None:
        """A loop that has ended answers those who still wait, instead of letting them hang."""
        error = loop.exception() or RuntimeError("the engine service is closed")
        for future in self._left_over():
            future.set_exception(error)

    def _left_over(self) -> Iterator[Future[Outcome]]:
        """Futures that nobody has answered, each once, whichever thread asks."""
        while self._waiting:
            try:
                yield self._waiting.popitem()[1]
            except KeyError:  # another thread took the last one
                break
        while True:
            try:
                item = self._inbox.get(block=False)
            except queue.Empty:
                return
            if item is not None and item[2].set_running_or_notify_cancel():
                yield item[2]
