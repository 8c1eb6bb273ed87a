"""Check whole columns of a prompt table by the rules of one row, and read a table row by row.

A column is dictionary-encoded and only its distinct values go through ``read_value``: the rules
exist once, and a million rows with twenty different sizes cost twenty checks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sdxl_core.contract.errors import RowError
from sdxl_core.contract.prompt_fields import PromptField, is_null, read_value
from sdxl_core.contract.prompts import ALIAS_OF


@dataclass(frozen=True, kw_only=True)
class CheckedColumn:
    """What the rows of a table hold in one column.

    ``distinct`` are the values, then the default as the last one; ``codes_N`` (int64) picks one of
    them for every row, -1 being the default. ``refused_N`` (bool) marks the rows whose value is of
    the wrong type or out of range; their code is meaningless.
    """

    distinct: list[Any]
    codes_N: npt.NDArray[np.int64]
    refused_N: npt.NDArray[np.bool_]

    def values_N(self, dtype: npt.DTypeLike, *, none: float = 0.0) -> npt.NDArray[Any]:
        """The value of every row as an array, ``none`` standing for None."""
        distinct = [none if value is None else value for value in self.distinct]
        return np.array(distinct, dtype=dtype)[self.codes_N]

    @property
    def missing_N(self) -> npt.NDArray[np.bool_]:
        """Rows without a value, whose default is None too."""
        return np.array([value is None for value in self.distinct])[self.codes_N] & ~self.refused_N


def check_column(field: PromptField, table: pa.Table, default: Any) -> CheckedColumn:
    """Check one column of ``table``; a table that lacks it has the default everywhere."""
    column = find_column(table, field.name)
    if column is None:
        codes_N = np.full(table.num_rows, -1, dtype=np.int64)
        return CheckedColumn(
            distinct=[default], codes_N=codes_N, refused_N=np.zeros(table.num_rows, dtype=bool)
        )
    if pa.types.is_nested(column.type):  # no column of ours is a list: each row is refused by name
        refused_N = pc.is_valid(column).to_numpy(zero_copy_only=False)
        codes_N = np.full(table.num_rows, -1, dtype=np.int64)
        return CheckedColumn(distinct=[default], codes_N=codes_N, refused_N=refused_N)
    encoded = column.dictionary_encode()
    cells = read_cells(encoded.dictionary)
    # One more slot at the end for the rows without a value: index -1 reaches it.
    distinct: list[Any] = [*cells, default]
    refused_D = np.zeros(len(distinct), dtype=bool)
    for code, cell in enumerate(cells):
        try:
            distinct[code] = default if is_null(field, cell) else read_value(field, cell)
        except RowError:
            distinct[code] = default
            refused_D[code] = True
    codes_N = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return CheckedColumn(distinct=distinct, codes_N=codes_N, refused_N=refused_D[codes_N])


def find_column(table: pa.Table, name: str) -> pa.Array | None:
    """The column under its own name or its alias, in one piece and not dictionary-encoded."""
    names = table.column_names
    found = next((n for n in (name, ALIAS_OF.get(name)) if n in names), None)
    if found is None:
        return None
    column = table.column(found)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.cast(column.type.storage_type)
    return column.combine_chunks()


def read_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table as mappings for ``resolve_row``.

    A text cell that is not UTF-8 (parquet files may hold such) comes as bytes, which no prompt
    column accepts: the row fails, not the table.
    """
    columns = [read_cells(column) for column in table.columns]
    for cells in zip(*columns, strict=True):
        yield dict(zip(table.column_names, cells, strict=True))


def read_cells(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The cells of a column as Python values; texts that are not UTF-8 as bytes."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_text_or_bytes(cell) for cell in column.cast(pa.large_binary()).to_pylist()]


def _text_or_bytes(cell: bytes | None) -> str | bytes | None:
    try:
        return None if cell is None else cell.decode()
    except UnicodeDecodeError:
        return cell
