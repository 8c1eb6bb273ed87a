"""One global batch, and how ranks share it.

Legend: B rows of a global batch.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import Bucket


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GlobalBatch:
    """The rows of one optimizer step over all ranks, in the plan's order.

    Args:
        index: place of the batch in its epoch, from 0.
        epoch: from 0.
        bucket: (height, width) of all its rows, pixels.
        unit: number of each row's unit in the manifest, int32[B].
        row: place of each row in its unit, from 0, int32[B].
        visit: how often each row came in the run before, int64[B]: in place of the epoch it makes
            seeds that differ also between the times that a row comes within one epoch.
    """

    index: int
    epoch: int
    bucket: Bucket
    unit: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    visit: npt.NDArray[np.int64]

    @property
    def num_rows(self) -> int:
        """The global batch size of its bucket."""
        return len(self.unit)


def rank_positions(num_rows: int, rank: int, world_size: int, micro_batch_size: int) -> list[slice]:
    """Which rows of a global batch one rank takes, a slice for each accumulation step.

    In step ``a`` the ranks take ``world_size * micro_batch_size`` rows that lie side by side.

    Raises:
        ConfigError: the ranks cannot share ``num_rows`` rows evenly, or there is no such rank.
    """
    step_rows = world_size * micro_batch_size
    if not (0 <= rank < world_size and micro_batch_size >= 1):
        raise ConfigError(
            f"found rank {rank} of {world_size} and a micro-batch of {micro_batch_size} rows, "
            "expected a rank below the world size and at least 1 row"
        )
    if num_rows % step_rows:
        raise ConfigError(
            f"a global batch of {num_rows} rows cannot be shared by {world_size} ranks with "
            f"micro-batches of {micro_batch_size}: expected a multiple of {step_rows}; change the "
            "number of ranks or the micro-batch size, the batch is part of the run"
        )
    first = rank * micro_batch_size
    return [slice(a, a + micro_batch_size) for a in range(first, num_rows, step_rows)]


def rank_slices(
    batch: GlobalBatch, rank: int, world_size: int, micro_batch_size: int
) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
    """The micro-batches of one rank, in their order: (unit, row), each int32[micro_batch_size].

    Raises:
        ConfigError: as ``rank_positions``.
    """
    positions = rank_positions(batch.num_rows, rank, world_size, micro_batch_size)
    return [(batch.unit[chosen], batch.row[chosen]) for chosen in positions]
