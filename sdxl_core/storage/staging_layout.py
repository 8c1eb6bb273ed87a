"""Which staged units make which part of the dataset: a pure function of seed and staged index.

Units are put in an order that depends on the seed and their names alone, and cut into groups of a
bounded number of bytes. A finish task reads one group, shuffles its rows and writes them as one
part. So reading the parts of a bucket one after the other is random order: exactly, where all fits
one group; where it does not, units of all of the source are mixed and then rows within each group.

Legend: U units, G groups, D rows that are duplicates.
"""

import dataclasses
import io
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.samples import RejectReason
from sdxl_core.contract.seeds import row_seed
from sdxl_core.storage.staged_parts import StagedIndex, StagedRows, read_parquet
from sdxl_core.storage.stores import Store

GROUP_BYTES = 1 << 30
# One group's pictures are one Arrow column, whose offsets have 31 bits.
MAX_GROUP_BYTES = 3 << 29

LAYOUT_FILE = "_layout.parquet"
DUPLICATES_FILE = "_duplicates.parquet"
_LAYOUT_KEY = b"sdxl_layout"

DUPLICATES_SCHEMA = pa.schema(
    [
        pa.field("source_slice", pa.int32(), nullable=False),
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The groups of units. Arrays are int64; ``start_G1`` has one entry more than there are groups.

    Group g is the units ``start_G1[g]`` to ``start_G1[g + 1] - 1``, in the order given here.
    """

    seed: int
    num_staged_parts: int
    part_U: npt.NDArray[np.int64]
    unit_U: npt.NDArray[np.int64]
    start_G1: npt.NDArray[np.int64]

    @property
    def num_groups(self) -> int:
        """How many parts the dataset has; at least 1."""
        return len(self.start_G1) - 1

    def units(self, group: int) -> list[tuple[int, int]]:
        """Staged part and unit number of each unit of ``group``."""
        chosen = slice(*self.start_G1[group : group + 2].tolist())
        return list(zip(self.part_U[chosen].tolist(), self.unit_U[chosen].tolist(), strict=True))

    def parts_with_rejected(self, group: int) -> list[int]:
        """The staged parts whose rejected rows are written with ``group``."""
        return list(range(group, self.num_staged_parts, self.num_groups))


def plan_layout(index: StagedIndex, *, seed: int, group_bytes: int = GROUP_BYTES) -> Layout:
    """Orders all units at random and cuts them into groups of nearly equal size.

    Args:
        index: all staged units; the order that they are listed in makes no difference.
        seed: of the order.
        group_bytes: most bytes of pictures in a group, 1 to 1.5 GiB. A larger unit is a group of
            its own.

    Raises:
        ConfigError: ``group_bytes`` is out of range.
    """
    if not 1 <= group_bytes <= MAX_GROUP_BYTES:
        raise ConfigError(
            f"group_bytes is {group_bytes}, expected 1 to {MAX_GROUP_BYTES} bytes; a group is held "
            "in memory"
        )
    names = zip(index.part_U.tolist(), index.unit_U.tolist(), strict=True)
    keys_U = np.array([row_seed(seed, f"unit {part} {unit}") for part, unit in names], np.int64)
    order_U = np.lexsort((index.unit_U, index.part_U, keys_U))
    return Layout(
        seed=seed,
        num_staged_parts=index.num_parts,
        part_U=index.part_U[order_U],
        unit_U=index.unit_U[order_U],
        start_G1=_even_cuts(index.num_bytes_U[order_U], group_bytes),
    )


def duplicates_table(
    rows: StagedRows,
    losers_D: Sequence[int] | npt.NDArray[np.int64],
    winners_D: Sequence[int] | npt.NDArray[np.int64],
    are_exact_D: Sequence[bool] | npt.NDArray[np.bool_],
) -> pa.Table:
    """The source rows that will be rejected as duplicates.

    Args:
        rows: all rows with samples.
        losers_D: positions in ``rows`` of those to reject, each once.
        winners_D: positions of the row that each of them is like, which stays.
        are_exact_D: is it the same file, or one that looks almost the same.

    Returns:
        ``DUPLICATES_SCHEMA``, sorted by slice and row. The detail names the row that is kept.
    """
    losers_D, winners_D = np.asarray(losers_D, np.int64), np.asarray(winners_D, np.int64)
    order_D = np.argsort(losers_D, kind="stable")
    losers_D, winners_D = losers_D[order_D], winners_D[order_D]
    details = [
        f"row {row} of slice {part} is kept, its id is {sample_id!r}"
        for part, row, sample_id in zip(
            rows.source_slice_R[winners_D].tolist(),
            rows.row_index_R[winners_D].tolist(),
            rows.ids_R.take(pa.array(winners_D)).to_pylist(),
            strict=True,
        )
    ]
    words = str(RejectReason.DUPLICATE_NEAR), str(RejectReason.DUPLICATE_EXACT)
    columns = [
        pa.array(rows.source_slice_R[losers_D], pa.int32()),
        pa.array(rows.row_index_R[losers_D], pa.int64()),
        pa.array([words[int(are_exact_D[position])] for position in order_D], pa.string()),
        pa.array(details, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=DUPLICATES_SCHEMA)


def write_layout(staging: Store, layout: Layout, duplicates: pa.Table) -> None:
    """Writes the layout, so that every finish task, and every resume, goes by the same one."""
    staging.write_bytes(DUPLICATES_FILE, _parquet_bytes(duplicates))
    group_U = np.repeat(np.arange(layout.num_groups), np.diff(layout.start_G1))
    info = {
        "seed": layout.seed,
        "num_staged_parts": layout.num_staged_parts,
        "num_groups": layout.num_groups,
    }
    table = pa.table({"part": layout.part_U, "unit": layout.unit_U, "group": group_U})
    table = table.replace_schema_metadata({_LAYOUT_KEY: json.dumps(info)})
    staging.write_bytes(LAYOUT_FILE, _parquet_bytes(table))


def read_layout(staging: Store) -> Layout | None:
    """The layout that was written, or None.

    Raises:
        StoreError: if it is there but damaged.
    """
    if not staging.exists(LAYOUT_FILE):
        return None
    table = read_parquet(staging, LAYOUT_FILE)
    info = json.loads(table.schema.metadata[_LAYOUT_KEY])
    groups = np.arange(info["num_groups"] + 1)
    return Layout(
        seed=info["seed"],
        num_staged_parts=info["num_staged_parts"],
        part_U=np.asarray(table["part"].to_numpy(), np.int64),
        unit_U=np.asarray(table["unit"].to_numpy(), np.int64),
        start_G1=np.searchsorted(table["group"].to_numpy(), groups).astype(np.int64),
    )


def read_duplicates(staging: Store, source_slices: Sequence[int]) -> pa.Table:
    """The duplicates among the rows of some slices; row groups without any are not read."""
    with staging.open_read(DUPLICATES_FILE) as file:
        return pq.read_table(file, filters=[("source_slice", "in", list(source_slices))])


def _even_cuts(bytes_U: npt.NDArray[np.int64], group_bytes: int) -> npt.NDArray[np.int64]:
    """Starts of the fewest groups of at most ``group_bytes``, the largest as small as can be."""
    end_U = np.cumsum(bytes_U)
    num_groups = len(_cuts(end_U, group_bytes))
    low, high = 0, group_bytes  # ``high`` bytes are enough for so few groups
    while low + 1 < high:
        middle = (low + high) // 2
        if len(_cuts(end_U, middle)) <= num_groups:
            high = middle
        else:
            low = middle
    return np.array(_cuts(end_U, high), np.int64)


def _cuts(end_U: npt.NDArray[np.int64], group_bytes: int) -> list[int]:
    """Starts of groups that are filled one after the other, and the number of units at the end."""
    starts = [0]
    while starts[-1] < len(end_U):
        before = end_U[starts[-1] - 1] if starts[-1] else 0
        stop = int(np.searchsorted(end_U, before + group_bytes, side="right"))
        starts.append(max(stop, starts[-1] + 1))
    return starts if len(starts) > 1 else [0, 0]


def _parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=1 << 16)
    return buffer.getvalue()
