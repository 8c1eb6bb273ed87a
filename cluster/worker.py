"""What all Ray actors of generate share.

They are thin. Each loads the networks of its stage once, turns a message into ``PartWork``, calls
the core and packs the result. Ray calls an actor from several threads, one part each, so several
parts are in flight in one actor and the slots of the engine stay full while a part drains.
"""

from typing import Any

import torch

from cluster.reporter import Reporter
from cluster.work import GenerateWork


class Worker:
    """What all stages share: a quiet process, pinned threads, and the line to the hub."""

    def __init__(self, work: GenerateWork, hub: Any, stage: str) -> None:
        torch.set_num_threads(work.num_threads)
        self._work = work
        self._stage = stage
        self._reporter = Reporter(hub, stage)
        self._begin, self._end = self._reporter.begin, self._reporter.end
