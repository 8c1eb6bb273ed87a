"""One Arrow type for each column, whatever mixture of cells or of files it comes from.

A column has the same type in every part of a table, so that parts can be put together again. Where
a mixture has no common type that loses nothing, the column is text.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sdxl_core.contract.errors import SchemaError

# What a column of JSON cells was seen to hold; a set of these is an int. Null adds nothing.
_BOOLEAN, _INTEGER, _WIDE_INTEGER, _HUGE_INTEGER, _NUMBER, _TEXT, _NESTED = (
    1 << n for n in range(7)
)
KIND_OF_CSV = _TEXT

_ARROW_TYPE_OF_KINDS = {
    0: pa.null(),
    _BOOLEAN: pa.bool_(),
    _INTEGER: pa.int64(),
    _WIDE_INTEGER: pa.int64(),
    _INTEGER | _WIDE_INTEGER: pa.int64(),
    _NUMBER: pa.float64(),
    # Exact, as these integers are below 2**53. With wider ones the column becomes text: a seed
    # must not be rounded because another row has 1.5.
    _NUMBER | _INTEGER: pa.float64(),
}


def add_kinds(kinds: dict[str, int], row: Mapping[str, Any]) -> None:
    """Notes the kind of each cell of a JSON object; new columns come to the end of ``kinds``."""
    for name, cell in row.items():
        kinds[name] = kinds.get(name, 0) | _kind(cell)


def merge_kinds(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The columns of all tables, in order of appearance, with the kinds that any of them has."""
    merged: dict[str, int] = {}
    for table in tables:
        for name, kinds in table.items():
            merged[name] = merged.get(name, 0) | kinds
    return merged


def schema_of_kinds(kinds: Mapping[str, int]) -> pa.Schema:
    """Arrow columns for JSON columns."""
    return pa.schema(
        [(name, _ARROW_TYPE_OF_KINDS.get(kind, pa.string())) for name, kind in kinds.items()]
    )


def merge_schemas(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """The columns of all schemas, in order of appearance, each with a type that holds all of them.

    Equal types stay; null gives way; integers widen to int64, floats to float64; else it is text.
    """
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            types[field.name] = _common_type(types.get(field.name, pa.null()), field.type)
    return pa.schema(list(types.items()))


def cells_to_arrow(cells: Sequence[Any], field: pa.Field, url: str) -> pa.Array:
    """JSON cells as an Arrow column of the type that the whole table has there.

    Raises:
        SchemaError: if a cell does not fit, which means that the file was changed.
    """
    if pa.types.is_string(field.type):
        return pa.array([_as_text(cell) for cell in cells], field.type)
    try:
        return pa.array(cells, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise SchemaError(
            f"{url}: column {field.name!r} was {field.type} when the table was counted, and now "
            f"holds something else ({error}); leave inputs alone while a job reads them"
        ) from error


def cast_column(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """``column`` with a type from ``merge_schemas``."""
    if column.type.equals(target):
        return column
    if not pa.types.is_string(target) or _is_plain(column.type):
        return pc.cast(column, target)
    return pa.chunked_array([pa.array([_as_text(cell) for cell in column.to_pylist()], target)])


def _kind(cell: Any) -> int:
    if cell is None:
        return 0
    if isinstance(cell, str):
        return _TEXT
    if isinstance(cell, bool):
        return _BOOLEAN
    if isinstance(cell, int):
        if abs(cell) <= 1 << 53:
            return _INTEGER
        return _WIDE_INTEGER if -(1 << 63) <= cell < 1 << 63 else _HUGE_INTEGER
    return _NUMBER if isinstance(cell, float) else _NESTED


def _common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    if first.equals(second) or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    pair = (first, second)
    if all(pa.types.is_integer(t) and not pa.types.is_uint64(t) for t in pair):
        return pa.int64()
    if all(pa.types.is_floating(t) for t in pair):
        return pa.float64()
    return pa.string()


def _is_plain(arrow_type: pa.DataType) -> bool:
    """Can pyarrow itself write such cells as text."""
    return bool(
        pa.types.is_string(arrow_type)
        or pa.types.is_large_string(arrow_type)
        or pa.types.is_integer(arrow_type)
        or pa.types.is_floating(arrow_type)
        or pa.types.is_boolean(arrow_type)
        or pa.types.is_dictionary(arrow_type)
    )


def _as_text(cell: Any) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    return json.dumps(cell, ensure_ascii=False, default=str)
