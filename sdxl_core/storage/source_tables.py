"""Samples of a table's rows: pictures in the rows, or in files that they point to.

Every row of a slice comes out, in its order: one that cannot be read has its problem.
"""

import base64
import binascii
import functools
import posixpath
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.contract.samples import RawSample, RejectReason
from sdxl_core.storage.parquet_rows import STREAM_BUFFER_BYTES
from sdxl_core.storage.source_columns import holds_bytes
from sdxl_core.storage.source_files import NUM_READ_THREADS, open_unchanged, read_uri
from sdxl_core.storage.source_members import Problem, captions_of, too_large
from sdxl_core.storage.source_slices import SourceColumns, SourceSlice
from sdxl_core.storage.store_errors import local_error
from sdxl_core.storage.stores import split_url
from sdxl_core.storage.text_lines import Lines, Record, csv_records, decode_field, json_records
from sdxl_core.storage.text_tables import changed_file
from sdxl_core.storage.threads import map_in_order

_BATCH_BYTES = 32 << 20
_MAX_BATCH_ROWS = 1024


class Cells(NamedTuple):
    """The cells of one row by column, or why there are none."""

    values: dict[str, Any]
    notes: tuple[str, ...] = ()
    problem: str | None = None


def read_table(
    piece: SourceSlice, *, retries: int = 6, timeout_s: float = 30.0
) -> Iterator[RawSample]:
    """The rows of a slice of a table; memory holds a batch of them.

    Raises:
        StoreError: if the table, or the store of a picture, cannot be read; rows that came before
            are not to be used.
        SchemaError: if the table's file is not what was planned any more.
    """
    make = functools.partial(_sample, piece, retries, timeout_s)
    rows = enumerate(read_cells(piece, retries=retries, timeout_s=timeout_s))
    assert piece.columns is not None
    if piece.columns.uri is None:
        return map(make, rows)
    return map_in_order(make, rows, num_threads=NUM_READ_THREADS)


def read_cells(piece: SourceSlice, *, retries: int, timeout_s: float) -> Iterator[Cells]:
    """The cells of the rows of a slice; no picture files are read. Raises as ``read_table``."""
    num_rows = 0
    with open_unchanged(
        piece.url, num_bytes=piece.num_bytes, retries=retries, timeout_s=timeout_s
    ) as file:
        is_parquet = piece.format == "parquet"
        for cells in _parquet_cells(file, piece) if is_parquet else _text_cells(file, piece):
            num_rows += 1
            yield cells
    if num_rows != piece.num_rows:
        raise changed_file(piece.url, f"{num_rows} rows in a slice", f"{piece.num_rows}")


def _parquet_cells(file: BinaryIO, piece: SourceSlice) -> Iterator[Cells]:
    """Rows of some row groups. A damaged one costs its own rows from the damage on."""
    try:
        parquet = pq.ParquetFile(file, buffer_size=STREAM_BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise changed_file(piece.url, f"no parquet file ({error})", "one") from error
    columns = _read_columns(parquet.schema_arrow, piece.columns)
    needed = _needed(piece.columns)
    for group in range(piece.first_row_group, piece.first_row_group + piece.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        row_bytes = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
        batch_rows = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // row_bytes))
        num_read, damage = 0, "the row group has fewer rows than the footer says"
        try:
            for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=columns):
                for row in range(batch.num_rows):
                    num_read += 1
                    yield _batch_cells(batch, row, needed)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise local_error(error, action="read", url=piece.url) from error
            damage = " ".join(str(error).split())[:300]
        for _ in range(num_read, metadata.num_rows):
            yield Cells({}, problem=f"{piece.url}, row group {group}: damaged: {damage}")


def _read_columns(schema: pa.Schema, columns: SourceColumns | None) -> list[str]:
    """All but columns of bytes that are not the picture."""
    assert columns is not None
    return [f.name for f in schema if f.name == columns.image or not holds_bytes(f.type)]


def _needed(columns: SourceColumns | None) -> set[str | None]:
    """Columns without which a row is nothing; all others are metadata."""
    assert columns is not None
    return {columns.image, columns.uri, columns.caption, columns.key}


def _batch_cells(batch: pa.RecordBatch, row: int, needed: set[str | None]) -> Cells:
    values: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[row].as_py()
        except (ValueError, OverflowError, pa.ArrowException) as error:
            if name in needed:
                return Cells(values, problem=f"column {name!r} cannot be read: {error}")
            notes = ("metadata_unreadable",)  # text that is not UTF-8, an unknown time zone
    return Cells(values, notes)


def _text_cells(file: BinaryIO, piece: SourceSlice) -> Iterator[Cells]:
    start = piece.text_start
    assert start is not None
    file.seek(start.offset)
    lines = Lines(file, offset=start.offset, line=start.line)
    records = csv_records(lines) if piece.format == "csv" else json_records(lines)
    num_rows = piece.num_rows or 0
    for _, record in zip(range(num_rows), records, strict=False):
        if record.problem is not None:
            where = f"{piece.url}, line {record.line}"
            yield Cells({}, problem=f"{where}: {record.problem}")
        elif piece.format == "csv":
            yield _csv_cells(record, start.header, piece)
        else:
            yield Cells(record.value)


def _csv_cells(record: Record, header: tuple[str, ...], piece: SourceSlice) -> Cells:
    fields: list[str] = record.value
    if len(fields) != len(header):
        found = f"{len(fields)} fields, expected {len(header)} as in the header"
        return Cells({}, problem=f"{piece.url}, line {record.line}: found {found}")
    values: dict[str, str | None] = {}
    notes: list[str] = []
    assert piece.columns is not None
    for name, raw in zip(header, fields, strict=True):
        try:
            values[name] = decode_field(raw) or None
        except UnicodeDecodeError:  # raw fields are Latin-1 already
            values[name] = raw
            notes.append("caption_latin1" if name == piece.columns.caption else "metadata_latin1")
    return Cells(values, tuple(notes))


def _sample(
    piece: SourceSlice, retries: int, timeout_s: float, numbered: tuple[int, Cells]
) -> RawSample:
    row_index, cells = numbered
    columns = piece.columns
    assert columns is not None
    values = dict(cells.values)
    image, problem = _image(values, piece, columns, retries, timeout_s)
    captions, wrong = captions_of(values.pop(columns.caption or "", None))
    if not captions:
        detail = wrong or f"column {columns.caption!r} is empty"
        problem = problem or (RejectReason.MISSING_CAPTION, detail)
    if cells.problem is not None:
        problem = (RejectReason.UNREADABLE_ROW, cells.problem)
    row = piece.first_row + row_index
    stem = posixpath.splitext(posixpath.basename(piece.url))[0]
    name = values.pop(columns.key, None) if columns.key else None
    return RawSample(
        key=str(name) if name not in (None, "") else f"{stem}-{row:09d}",
        row_index=row_index,
        source=f"{piece.url}#{row}",
        image=image,
        captions=captions,
        metadata={name: _as_json(value) for name, value in values.items()},
        notes=cells.notes,
        problem=problem,
    )


def _image(
    values: dict[str, Any],
    piece: SourceSlice,
    columns: SourceColumns,
    retries: int,
    timeout_s: float,
) -> tuple[bytes | None, Problem | None]:
    """The picture of a row, taken out of its cells, or why there is none."""
    cell = values.pop(columns.image, None) if columns.image else None
    uri = values.get(columns.uri) if columns.uri else None
    if isinstance(cell, dict):
        uri = uri or (cell.get("path") if cell.get("bytes") is None else None)
        cell = cell.get("bytes")
    if isinstance(cell, str):
        try:
            # also as a data URL: data:image/png;base64,…
            cell = base64.b64decode(cell.rpartition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            return None, (RejectReason.NOT_AN_IMAGE, f"{columns.image}: not base64: {error}")
    if cell is None and uri:
        found = read_uri(
            str(uri),
            folder=split_url(piece.url)[0],
            within_folder=columns.within_folder,
            retries=retries,
            timeout_s=timeout_s,
        )
        if isinstance(found, tuple):
            return None, found
        cell = found
    if cell is None:
        empty = " and ".join(repr(name) for name in (columns.image, columns.uri) if name)
        return None, (RejectReason.MISSING_IMAGE, f"column {empty} is empty")
    if not isinstance(cell, bytes):
        return None, (RejectReason.NOT_AN_IMAGE, f"{columns.image}: found {type(cell).__name__}")
    if not cell:
        return cell, (RejectReason.EMPTY_IMAGE, "the image has 0 bytes")
    problem = too_large("jpg", len(cell))
    return (None, problem) if problem else (cell, None)


def _as_json(value: Any) -> Any:
    """A cell as JSON knows it; dates, decimals and the like become text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return str(value)
