"""Ranks share a batch without a gap, each in its place."""

import pytest

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.plan import rank_positions


@pytest.mark.parametrize(
    ("rank", "world_size", "micro_batch", "expected"),
    [
        (0, 2, 3, [(0, 3), (6, 9)]),
        (1, 2, 3, [(3, 6), (9, 12)]),
        (2, 3, 4, [(8, 12)]),
        (0, 1, 12, [(0, 12)]),
    ],
)
def test_rank_takes_its_place_in_each_accumulation_step(
    rank: int, world_size: int, micro_batch: int, expected: list[tuple[int, int]]
) -> None:
    slices = rank_positions(12, rank, world_size, micro_batch)
    assert [(part.start, part.stop) for part in slices] == expected


@pytest.mark.parametrize(
    ("rank", "world_size", "micro_batch", "message"),
    [
        (0, 5, 1, "12 rows cannot be shared by 5 ranks with micro-batches of 1.*multiple of 5"),
        (0, 2, 4, "multiple of 8"),
        (0, 1, 24, "multiple of 24"),
        (2, 2, 1, "rank 2 of 2"),
        (0, 1, 0, "micro-batch of 0 rows"),
    ],
)
def test_ranks_that_cannot_share_a_batch_are_refused(
    rank: int, world_size: int, micro_batch: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        rank_positions(12, rank, world_size, micro_batch)
