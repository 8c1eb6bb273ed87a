"""The batching engine: many rows, one network, rows join and leave at any step.

It works like a modern language-model server. Each latent shape has a lane with a fixed number of
slots; every ``tick`` picks the fullest lane, fills its free slots from that lane's queue (longest
rows first) and makes one network call for all of them. Rows of one call may differ in steps,
position, sampler, guidance and seed. Base and refiner are two engines.

Under the ``exact`` numerics profile a lane always runs with all its slots, idle ones padded, so a
row's bits do not depend on its neighbours, its order of arrival or the length of the queue. Under
``fast`` a lane that is not full runs with the smallest registered number of places that holds its
rows.
"""

import collections
import dataclasses
import heapq
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch

from sdxl_core.contract.errors import ConfigError
from sdxl_core.diffusion.lane import Lane, Network, Row
from sdxl_core.diffusion.tasks import DenoiseResult, DenoiseTask, LaneKey

logger = logging.getLogger(__name__)

Numerics = Literal["exact", "fast"]

# Slot numbers that a lane may have. Few, so that few batch shapes are ever compiled, tuned or
# compared.
REGISTERED_SLOTS = (1, 2, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotShrink:
    """A lane that ran out of memory and went on with fewer slots."""

    lane: LaneKey
    num_slots_before: int
    num_slots_after: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfMemoryRow:
    """A row that does not fit into memory even alone."""

    key: str
    detail: str


@dataclasses.dataclass
class EngineStats:
    """What the engine has done: ``utilisation`` is the share of computed places that held a row."""

    num_ticks: int = 0
    num_places: int = 0
    num_row_steps: int = 0

    @property
    def utilisation(self) -> float:
        """Share of computed places that held a row, 0 to 1."""
        return self.num_row_steps / self.num_places if self.num_places else 0.0


def registered_slots(num_rows: int, *, max_slots: int) -> int:
    """Smallest registered slot number that holds ``num_rows``, at most the largest one up to
    ``max_slots``.
    """
    if max_slots < 1:
        raise ConfigError(f"slots: found {max_slots}, expected at least 1")
    allowed = [slots for slots in REGISTERED_SLOTS if slots <= max_slots]
    return next((slots for slots in allowed if slots >= num_rows), allowed[-1])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that an allocation failed, on the GPU or on the CPU (which has no error
    class).
    """
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Engine:
    """Runs ``DenoiseTask``s through one network.

    Args:
        network: One UNet call; see ``sdxl_core.diffusion.lane.Network``.
        slots_for: Slot number of a lane, asked once when the lane is first needed: a mapping, or
            one number for every shape. Must be registered numbers.
        device: Where the network is.
        dtype: Dtype of the network's inputs. Latents and all sampler arithmetic stay float32.
        numerics: ``exact`` or ``fast``; see above.

    Memory is bounded by the slots. Queued tasks stay on the CPU as they were given; how many are
    queued is the caller's business.
    """

    def __init__(
        self,
        network: Network,
        *,
        slots_for: Mapping[LaneKey, int] | int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        numerics: Numerics = "exact",
    ) -> None:
        self._network = network
        self._slots_for = slots_for
        self._device = torch.device(device)
        self._dtype = dtype
        self._numerics = numerics
        # Heaps of (minus steps left, number of arrival, row).
        self._queues: dict[LaneKey, list[tuple[float, int, Row]]] = collections.defaultdict(list)
        self._arrivals = itertools.count()
        self._lanes: dict[LaneKey, Lane] = {}
        # Slot numbers that out-of-memory has lowered stay lowered.
        self._lowered: dict[LaneKey, int] = {}
        self._sticky: LaneKey | None = None
        self.shrinks: list[SlotShrink] = []
        self.stats = EngineStats()

    def submit(self, task: DenoiseTask) -> None:
        """Queues a task. It runs when ``tick`` is called."""
        if task.table.num_evaluations == 0:
            raise ConfigError(f"row {task.key}: the trajectory has no steps")
        self._num_slots(task.lane_key)  # refuses a shape without a slot number before it is queued
        # Longest rows first: then the last rows of a lane are short ones that end together, and
        # few places are padded on the way.
        self._enqueue(task.lane_key, Row.of(task), rank=-task.table.num_evaluations)

    @property
    def num_pending(self) -> int:
        """Tasks submitted and not yet returned."""
        return sum(map(len, self._queues.values())) + sum(len(x.rows) for x in self._lanes.values())

    @property
    def best_fill(self) -> float:
        """Share of slots that the next tick would use, 0 when there is nothing to do."""
        key = self._next_lane()
        return 0.0 if key is None else self._fill(key)

    def run(self, tasks: Iterable[DenoiseTask]) -> dict[str, DenoiseResult | OutOfMemoryRow]:
        """Runs tasks to the end, for callers without a loop of their own."""
        for task in tasks:
            self.submit(task)
        results: dict[str, DenoiseResult | OutOfMemoryRow] = {}
        while self.num_pending:
            results.update((result.key, result) for result in self.tick())
        return results

    @torch.inference_mode()
    def tick(self) -> list[DenoiseResult | OutOfMemoryRow]:
        """Makes one network call for the fullest lane and returns the rows that end with it."""
        key = self._next_lane()
        if key is None:
            return []
        self._sticky = key
        lane = self._lanes.get(key) or self._open_lane(key)
        queue = self._queues[key]
        while lane.num_free and queue:
            lane.admit(heapq.heappop(queue)[-1])
        num_places = lane.num_slots
        if self._numerics == "fast":
            num_places = registered_slots(len(lane.rows), max_slots=lane.num_slots)
        try:
            num_rows = len(lane.rows)
            results = lane.advance(self._network, num_places=num_places)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return self._shrink(key, str(error))
        self.stats.num_ticks += 1
        self.stats.num_places += num_places
        self.stats.num_row_steps += num_rows
        if not lane.rows and not queue:
            # Buffers of a shape that may not come back are not kept.
            del self._lanes[key]
            del self._queues[key]
        return list(results)

    def _enqueue(self, key: LaneKey, row: Row, *, rank: float) -> None:
        heapq.heappush(self._queues[key], (rank, next(self._arrivals), row))

    def _next_lane(self) -> LaneKey | None:
        """The lane with the best fill; among equals the one that ran last, so that its rows get
        through.
        """
        keys = [key for key in {*self._queues, *self._lanes} if self._num_rows(key)]
        if not keys:
            return None
        return max(
            keys, key=lambda key: (self._fill(key), key == self._sticky, self._num_rows(key))
        )

    def _num_rows(self, key: LaneKey) -> int:
        lane = self._lanes.get(key)
        return len(self._queues.get(key, ())) + (len(lane.rows) if lane else 0)

    def _fill(self, key: LaneKey) -> float:
        return min(1.0, self._num_rows(key) / self._num_slots(key))

    def _num_slots(self, key: LaneKey) -> int:
        if key in self._lowered:
            return self._lowered[key]
        slots = self._slots_for if isinstance(self._slots_for, int) else self._slots_for.get(key)
        if slots not in REGISTERED_SLOTS:
            raise ConfigError(
                f"slots for {key.height_px}x{key.width_px} px, guided={key.guided}: found {slots}, "
                f"expected one of {REGISTERED_SLOTS}"
            )
        return slots

    def _open_lane(self, key: LaneKey) -> Lane:
        lane = Lane(key, num_slots=self._num_slots(key), device=self._device, dtype=self._dtype)
        self._lanes[key] = lane
        return lane

    def _shrink(self, key: LaneKey, message: str) -> list[DenoiseResult | OutOfMemoryRow]:
        """Goes on with the next smaller slot number; rows keep their state and their place in the
        queue.
        """
        lane = self._lanes.pop(key)
        rows = lane.park_all()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = [slots for slots in REGISTERED_SLOTS if slots < lane.num_slots]
        if not smaller:
            size = f"{key.height_px}x{key.width_px} px"
            detail = f"{size} does not fit with 1 slot: {message.splitlines()[0]}"
            return [OutOfMemoryRow(key=row.task.key, detail=detail) for row in rows]
        self._lowered[key] = smaller[-1]
        for row in rows:
            self._enqueue(key, row, rank=-math.inf)  # before those that have not begun
        shrink = SlotShrink(lane=key, num_slots_before=lane.num_slots, num_slots_after=smaller[-1])
        self.shrinks.append(shrink)
        logger.warning(
            "out of memory at %dx%d px: slots %d -> %d, %d rows go on with the smaller batch",
            key.height_px,
            key.width_px,
            shrink.num_slots_before,
            shrink.num_slots_after,
            len(rows),
        )
        return []


def unet_network(unet: Callable[..., tuple[torch.Tensor]]) -> Network:
    """Wraps a diffusers ``UNet2DConditionModel`` (compiled or not) as the engine's network."""

    def network(
        x_NCHW: torch.Tensor,
        timestep_N: torch.Tensor,
        context_NTD: torch.Tensor,
        pooled_NP: torch.Tensor,
        time_ids_NI: torch.Tensor,
    ) -> torch.Tensor:
        added = {"text_embeds": pooled_NP, "time_ids": time_ids_NI}
        return unet(x_NCHW, timestep_N, context_NTD, added_cond_kwargs=added, return_dict=False)[0]

    return network
