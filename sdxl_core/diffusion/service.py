"""Engines behind a thread: callers on other threads hand in tasks and wait for futures.

One thread owns the engines and never does anything but ticks, so several callers (parts of a table,
say) fill the same slots: the rows of the next part take the places that the last rows of this part
leave.
"""

import dataclasses
import queue
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from sdxl_core.contract.errors import SdxlError
from sdxl_core.diffusion.engine import Engine, OutOfMemoryRow
from sdxl_core.diffusion.tasks import DenoiseResult, DenoiseTask

Outcome = DenoiseResult | OutOfMemoryRow


class EngineService:
    """Runs named engines on one thread, always ticking the one whose next call is fullest.

    Args:
        engines: For example ``{"base": ..., "refiner": ...}`` when one device holds both. On equal
            fill the later name wins, so rows that are further along leave first.

    Use as a context manager, or call ``close``.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = dict(engines)
        self._inbox: queue.SimpleQueue[tuple[str, DenoiseTask, Future[Outcome]] | None] = (
            queue.SimpleQueue()
        )
        self._waiting: dict[tuple[str, str], Future[Outcome]] = {}
        self._num_accepted = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._loop = self._executor.submit(self._run)
        self._loop.add_done_callback(self._fail_waiting)

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
            # The loop may have failed between the check and the put; nobody else would answer.
            self._fail_waiting(self._loop)
        return future

    def close(self) -> None:
        """Finishes what was submitted, then stops the thread."""
        self._inbox.put(None)
        self._executor.shutdown(wait=True)

    def __enter__(self) -> "EngineService":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        closing = False
        while not closing or self._waiting:
            closing = self._take_inbox(block=not self._waiting and not closing) or closing
            ready = {name: engine.best_fill for name, engine in self.engines.items()}
            if not any(ready.values()):
                continue
            # max() keeps the first of equals; reversed makes that the later name.
            name = max(reversed(ready), key=ready.__getitem__)
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
        self._num_accepted += 1
        key = str(self._num_accepted)
        try:
            self.engines[name].submit(dataclasses.replace(task, key=key))
        except SdxlError as error:
            future.set_exception(error)
            return
        self._waiting[(name, key)] = future

    def _fail_waiting(self, loop: "Future[None]") -> None:
        """A loop that ended by an error takes its waiting tasks with it, instead of letting callers
        hang.
        """
        error = loop.exception()
        if error is None:
            return
        while True:
            try:
                item = self._inbox.get(block=False)
            except queue.Empty:
                break
            if item is not None:
                item[2].set_exception(error)
        for future in self._waiting.values():
            future.set_exception(error)
        self._waiting.clear()
