"""A worker's line to the hub: which part it has begun, what it has done, how long that took."""

import os
from typing import Any

import ray

from cluster.telemetry import Event


class Reporter:
    """Speaks for one stage in one process.

    Args:
        hub: From ``telemetry.start_hub``.
        stage: Name of the stage.
    """

    def __init__(self, hub: Any, stage: str) -> None:
        self._hub = hub
        self._stage = stage
        self._name = f"{stage}-{ray.get_runtime_context().get_node_id()[:6]}-{os.getpid()}"

    def begin(self, part: int) -> int:
        """Counts one more begin of ``part``; returns how many there are now."""
        return int(ray.get(self._hub.begin.remote(self._stage, part)))

    def end(self, part: int, *spans: tuple[str, int, float], detail: str = "") -> None:
        """Reports spans (name, rows, seconds) and that the stage got through the part."""
        events = [
            Event(
                span=span,
                part=part,
                num_rows=num_rows,
                seconds=seconds,
                worker=self._name,
                detail=detail,
            )
            for span, num_rows, seconds in spans
        ]
        self._hub.record.remote(events)
        self._hub.end.remote(self._stage, part)
