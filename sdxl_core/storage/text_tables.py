"""CSV and JSONL tables: one pass counts the rows and notes where they lie, later reads seek.

CSV cells are text, an empty cell is null. JSONL cells keep their JSON type where a whole column has
one; columns of mixed type, lists and objects become text (strings as they are, all else as JSON).
Both keep the promise that a row that cannot be read is still a row: its cells are null and the
column ``_unreadable`` tells the file, the line and the reason.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa

from sdxl_core.contract.errors import SchemaError
from sdxl_core.contract.prompts import UNREADABLE_COLUMN
from sdxl_core.storage.cell_types import KIND_OF_CSV, add_kinds, cells_to_arrow
from sdxl_core.storage.text_lines import Lines, Record, csv_records, decode_field, json_records

TextFormat = Literal["csv", "jsonl"]

ROWS_PER_MARK = 64
MAX_COLUMNS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextIndex:
    """What one pass over a CSV or JSONL file found.

    Attributes:
        num_rows: records, readable or not; the header of a CSV file is not one.
        num_unreadable: how many of them cannot be read.
        kinds: for each column, in order of appearance, the kinds of its cells (``cell_types``).
        header_width: fields of the CSV header, 0 for JSONL.
        offsets: int64 ``(M,)``, the byte where row ``64 * m`` starts.
        lines: int64 ``(M,)``, the number of the line there, from 1.
        digest: of the whole file, hex.
    """

    num_rows: int
    num_unreadable: int
    kinds: dict[str, int]
    header_width: int
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    lines: np.ndarray[Any, np.dtype[np.int64]]
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextStart:
    """Where to start reading to come to a certain row soon. Small, unlike the index it is from."""

    offset: int
    line: int
    num_skipped: int
    header: tuple[str, ...]


def index_text(file: BinaryIO, *, text_format: TextFormat, url: str) -> TextIndex:
    """Reads the whole file once, in bounded memory.

    Raises:
        SchemaError: if it is not such a table at all: another encoding, no header, another
            separator, columns of equal name, more than 1,000 columns.
    """
    digest = hashlib.blake2b(digest_size=16)
    lines = Lines(file, digest=digest)
    header = _read_header(lines, url) if text_format == "csv" else ()
    kinds = dict.fromkeys(header, KIND_OF_CSV)
    offsets: list[int] = []
    numbers: list[int] = []
    num_rows = num_unreadable = 0
    for record in _records(lines, text_format):
        if num_rows % ROWS_PER_MARK == 0:
            offsets.append(record.offset)
            numbers.append(record.line)
        num_rows += 1
        if text_format == "jsonl" and record.problem is None:
            add_kinds(kinds, record.value)
            _check_num_columns(kinds, url, record)
        elif text_format == "csv" and record.problem is None:
            record = _csv_cells(record, header)
        num_unreadable += record.problem is not None
    return TextIndex(
        num_rows=num_rows,
        num_unreadable=num_unreadable,
        kinds=kinds,
        header_width=len(header),
        offsets=np.array(offsets, np.int64),
        lines=np.array(numbers, np.int64),
        digest=digest.hexdigest(),
    )


def start_of(index: TextIndex, first_row: int) -> TextStart:
    """Where to start reading to come to ``first_row``."""
    mark, num_skipped = divmod(first_row, ROWS_PER_MARK)
    return TextStart(
        offset=int(index.offsets[mark]),
        line=int(index.lines[mark]),
        num_skipped=num_skipped,
        header=tuple(index.kinds)[: index.header_width],
    )


def read_text_rows(
    file: BinaryIO,
    *,
    text_format: TextFormat,
    start: TextStart,
    num_rows: int,
    schema: pa.Schema,
    url: str,
) -> pa.Table:
    """The rows from ``start`` on, with the columns of ``schema`` and ``_unreadable``.

    Raises:
        SchemaError: if the file no longer fits the index.
    """
    file.seek(start.offset)
    lines = Lines(file, offset=start.offset, line=start.line)
    stop = start.num_skipped + num_rows
    records = list(itertools.islice(_records(lines, text_format), start.num_skipped, stop))
    if len(records) != num_rows:
        raise changed_file(url, f"{len(records)} rows from line {start.line} on", f"{num_rows}")
    if text_format == "csv":
        records = [_csv_cells(r, start.header) if r.problem is None else r for r in records]
    rows: list[dict[str, Any]] = [record.value or {} for record in records]
    problems = [r.problem and f"{url}, line {r.line}: {r.problem}" for r in records]
    columns = {f.name: cells_to_arrow([r.get(f.name) for r in rows], f, url) for f in schema}
    columns[UNREADABLE_COLUMN] = pa.array(problems, pa.string())
    return pa.table(columns)


def changed_file(url: str, found: str, expected: str) -> SchemaError:
    """The error for an input that is not what it was when the job was planned."""
    return SchemaError(
        f"{url} was changed after it was counted: found {found}, expected {expected}; "
        "leave inputs alone while a job reads them, then run again with a new output directory"
    )


def _records(lines: Lines, text_format: TextFormat) -> Iterator[Record]:
    return csv_records(lines) if text_format == "csv" else json_records(lines)


def _csv_cells(record: Record, header: tuple[str, ...]) -> Record:
    """The record with a dict of texts as its value, or with the problem of its fields."""
    fields = record.value
    if len(fields) != len(header):
        found = f"{len(fields)} fields, expected {len(header)} as in the header"
        return record._replace(value=None, problem=f"ragged CSV record: found {found}")
    cells: dict[str, str | None] = {}
    for name, raw in zip(header, fields, strict=True):
        try:
            cells[name] = decode_field(raw) or None
        except UnicodeDecodeError as error:
            problem = f"column {name!r} is not UTF-8: {error.reason} at byte {error.start}"
            return record._replace(value=None, problem=problem)
    return record._replace(value=cells)


def _read_header(lines: Lines, url: str) -> tuple[str, ...]:
    record = next(csv_records(lines), None)
    if record is None:
        return ()
    where = f"{url}, line {record.line}"
    if record.problem:
        raise SchemaError(f"{where}: the header cannot be read: {record.problem}")
    try:
        names = [decode_field(raw).strip() for raw in record.value]
    except UnicodeDecodeError as error:
        raise SchemaError(f"{where}: the header is not UTF-8 ({error}); save it as UTF-8") from None
    if len(names) == 1 and any(separator in names[0] for separator in ";\t|"):
        raise SchemaError(
            f"{where}: found one column, {json.dumps(names[0])}; expected columns separated by "
            "commas; save the table with commas, or as parquet or JSONL"
        )
    # pandas writes its index under an empty name, and reads it back under this one.
    names = [name or f"Unnamed: {position}" for position, name in enumerate(names)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SchemaError(f"{where}: column names must differ, found twice: {', '.join(repeated)}")
    return tuple(names)


def _check_num_columns(kinds: dict[str, int], url: str, record: Record) -> None:
    if len(kinds) > MAX_COLUMNS:
        raise SchemaError(
            f"{url}, line {record.line}: more than {MAX_COLUMNS} different keys up to here; "
            "expected one object per row with the same keys"
        )
