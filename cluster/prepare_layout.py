"""Between the two passes: duplicates are found and staged units are put in random order.

One task does it, so that the driver's memory does not grow with the rows: it holds some 100 bytes
for each row that has samples.
"""

from typing import Any, cast

import numpy as np
import ray

from cluster.pools import get
from cluster.prepare_work import PrepareWork
from sdxl_core.storage.staged_parts import (
    StagedRows,
    read_staged_index,
    read_staged_rows,
    staging_store,
)
from sdxl_core.storage.staging_layout import (
    Layout,
    duplicates_table,
    plan_layout,
    read_layout,
    write_layout,
)
from sdxl_core.storage.stores import Store


def make_layout(
    work: PrepareWork, *, seed: int, group_bytes: int, exact: bool, near: int | None
) -> Layout:
    """Makes the layout and writes it.

    Args:
        work: The run; all of its slices are staged.
        seed: Of the order.
        group_bytes: Pictures of one group.
        exact: Leave out rows with the very bytes of another.
        near: Leave out rows whose hash is so near another's; None keeps them.

    Raises:
        StoreError: if the staged parts cannot be read.
    """
    staging = staging_store(work.open_output())
    task: Any = cast(Any, ray.remote)(num_cpus=1, max_retries=3)(lay_out)
    get(task.remote(staging, seed=seed, group_bytes=group_bytes, exact=exact, near=near))
    layout = read_layout(staging)
    assert layout is not None
    return layout


def lay_out(staging: Store, *, seed: int, group_bytes: int, exact: bool, near: int | None) -> None:
    """What ``make_layout`` has a task do."""
    index = read_staged_index(staging)
    layout = plan_layout(index, seed=seed, group_bytes=group_bytes)
    rows = read_staged_rows(staging, index)
    write_layout(staging, layout, _duplicates(rows, exact=exact, near=near))


def _duplicates(rows: StagedRows, *, exact: bool, near: int | None) -> Any:
    from sdxl_core.data.duplicates import find_duplicates  # imports torch

    if not exact or not len(rows.row_index_R):
        return duplicates_table(rows, [], [], [])
    found = find_duplicates(
        np.arange(len(rows.row_index_R)),
        rows.content_sha256_R,
        None if near is None else rows.phash_R,
        near_distance=near or 0,
    )
    return duplicates_table(rows, found.losers, found.winners, found.are_exact)
