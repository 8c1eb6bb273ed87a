"""What happens during a run, as events: one JSON line per stage and part, and counts for people.

Workers send events to one small actor, the hub; the driver takes them out every second, appends
them to ``_events.jsonl`` and draws progress from them. The hub also counts how often a stage has
begun a part, which is how the death of a worker is noticed (``cluster.failures``).
"""

import collections
import dataclasses
import json
import logging
import time
from typing import Any, Literal

import ray
from ray.exceptions import RayError

from sdxl_core.contract.errors import StoreError
from sdxl_core.storage.stores import Store

logger = logging.getLogger(__name__)

EVENTS_FILE = "_events.jsonl"
DRAIN_TIMEOUT_S = 20.0

Span = Literal["read", "encode", "denoise", "refine", "decode", "write", "commit"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """A finished piece of work: ``seconds`` of ``span`` for ``num_rows`` rows of ``part``."""

    span: str
    part: int
    num_rows: int
    seconds: float
    worker: str
    time: float = dataclasses.field(default_factory=time.time)
    detail: str = ""


# A hub that dies comes back empty: some events and the counts of begins are lost, no image is.
@ray.remote(num_cpus=0, max_concurrency=1, max_restarts=-1, max_task_retries=-1)  # type: ignore[call-overload]
class _Hub:
    """Collects events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._begun: collections.Counter[tuple[str, int]] = collections.Counter()

    def record(self, events: list[Event]) -> None:
        self._events.extend(events)

    def begin(self, stage: str, part: int) -> int:
        """Counts one more begin of ``part`` at ``stage``; returns how many there are now."""
        self._begun[(stage, part)] += 1
        return self._begun[(stage, part)]

    def end(self, stage: str, part: int) -> None:
        """The stage got through: its begins are forgotten."""
        self._begun.pop((stage, part), None)

    def drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def start_hub() -> Any:
    """Starts the hub on the driver's node, so that a lost worker node does not take it along."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    return _Hub.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


def drain(hub: Any) -> list[Event]:
    """Takes the events that have come in since the last time.

    They are a report: a hub that does not answer stops no job.
    """
    try:
        events: list[Event] = ray.get(hub.drain.remote(), timeout=DRAIN_TIMEOUT_S)
    except RayError as error:
        logger.warning("events are missing: %s", " ".join(str(error).split())[:200])
        return []
    return events


class EventLog:
    """``_events.jsonl`` of one run. Lines are kept in memory and put in the store.

    A store on S3 cannot append, so the whole file is put now and then and at the end; a run that is
    resumed goes on with the lines of the run before.
    """

    def __init__(self, store: Store, *, flush_every_s: float = 30.0) -> None:
        self._store = store
        self._flush_every_s = flush_every_s
        self._flushed = time.monotonic()
        # About a kilobyte a part: a million rows are some 16 MB.
        self._lines = [store.read_bytes(EVENTS_FILE)] if store.exists(EVENTS_FILE) else []

    def append(self, events: list[Event]) -> None:
        """Adds events; puts the file if it was not put for a while."""
        for event in events:
            self._lines.append(json.dumps(dataclasses.asdict(event)).encode() + b"\n")
        if time.monotonic() - self._flushed > self._flush_every_s:
            self.flush()

    def flush(self) -> None:
        """Puts the file. Events are a report: that it cannot be put does not stop the job."""
        self._flushed = time.monotonic()
        try:
            self._store.write_bytes(EVENTS_FILE, b"".join(self._lines))
        except StoreError:
            pass  # the commit of the next part meets the same store, and says so where it matters
