"""What all Ray actors of generate share.

They are thin. Each loads the networks of its stage once, turns a message into ``PartWork``, calls
the core and packs the result. Ray calls an actor from several threads, one part each, so several
parts are in flight in one actor and the slots of the engine stay full while a part drains.
"""

import os
from typing import Any

import ray
import torch

from cluster.telemetry import Event
from cluster.work import GenerateWork


class Worker:
    """What all stages share: a quiet process, pinned threads, and the line to the hub."""

    def __init__(self, work: GenerateWork, hub: Any, stage: str) -> None:
        torch.set_num_threads(work.num_threads)
        self._work = work
        self._hub = hub
        self._stage = stage
        self._name = f"{stage}-{ray.get_runtime_context().get_node_id()[:6]}-{os.getpid()}"

    def _begin(self, part: int) -> int:
        return int(ray.get(self._hub.begin.remote(self._stage, part)))

    def _end(self, part: int, *spans: tuple[str, int, float], detail: str = "") -> None:
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
