"""Prompt tables of any size: counted once, cut into parts by arithmetic, read part by part.

``find_table_files`` finds the files, ``plan_parts`` counts their rows and cuts them into parts,
``read_part`` reads one part and nothing else. The order of files and rows never depends on who
reads: row numbers count through the files in the order of their paths. A part lies within one file.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sdxl_core.contract.errors import ConfigError, SchemaError
from sdxl_core.contract.prompts import UNREADABLE_COLUMN
from sdxl_core.storage.cell_types import cast_column, merge_kinds, merge_schemas, schema_of_kinds
from sdxl_core.storage.parquet_rows import ParquetScan, read_parquet_rows, scan_parquet
from sdxl_core.storage.stores import open_file
from sdxl_core.storage.table_files import TableFile, TableFormat, find_table_files
from sdxl_core.storage.text_lines import READ_BUFFER_BYTES
from sdxl_core.storage.text_tables import (
    TextIndex,
    TextStart,
    changed_file,
    index_text,
    read_text_rows,
    start_of,
)
from sdxl_core.storage.threads import map_in_order

__all__ = ["Part", "PartPlan", "TableFile", "find_table_files", "plan_parts", "read_part"]


_NUM_SCAN_THREADS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Some consecutive rows of one file, and all that is needed to read them. Small, picklable.

    ``first_row`` counts within the file, ``global_first_row`` through all files of the table; both
    from 0. ``schema`` is that of the whole table, without the column ``_unreadable``.
    """

    index: int
    url: str
    format: TableFormat
    num_bytes: int
    first_row: int
    num_rows: int
    global_first_row: int
    schema: pa.Schema
    text_start: TextStart | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartPlan:
    """How a table is cut into parts. It holds a few numbers per file, however many rows there are.

    Attributes:
        files: in the order of the rows; files without rows are there too.
        scans: what counting found, one per file.
        rows_per_part: rows of every part but the last one of each file.
        schema: columns and types of the whole table.
        first_parts: int64 ``(F + 1,)``, index of the first part of each file, then ``num_parts``.
        first_rows: int64 ``(F + 1,)``, number of the first row of each file, then ``num_rows``.
    """

    files: tuple[TableFile, ...]
    scans: tuple[TextIndex | ParquetScan, ...]
    rows_per_part: int
    schema: pa.Schema
    first_parts: np.ndarray[Any, np.dtype[np.int64]]
    first_rows: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def num_parts(self) -> int:
        """How many parts there are; they are numbered from 0."""
        return int(self.first_parts[-1])

    @property
    def num_rows(self) -> int:
        """Rows of the whole table, unreadable ones included."""
        return int(self.first_rows[-1])

    @property
    def num_unreadable(self) -> int:
        """Lines of CSV and JSONL files that are known to be broken; they become failed rows."""
        return sum(scan.num_unreadable for scan in self.scans if isinstance(scan, TextIndex))

    @property
    def digest(self) -> str:
        """Identity of the input, hex: content and order of the files, whatever they are called.

        Of a text file it covers every byte, of a parquet file its footer, which has sizes, offsets
        and statistics of every column.
        """
        digest = hashlib.blake2b(digest_size=16)
        for file, scan in zip(self.files, self.scans, strict=True):
            digest.update(
                f"{file.format} {file.num_bytes} {scan.num_rows} {scan.digest}\n".encode()
            )
        return digest.hexdigest()

    def part(self, index: int) -> Part:
        """Part number ``index``, by arithmetic.

        Raises:
            IndexError: if there is no such part.
        """
        if not 0 <= index < self.num_parts:
            raise IndexError(f"part {index} of a plan with {self.num_parts} parts")
        # `right` steps over files without rows, which begin where the next one does.
        position = int(np.searchsorted(self.first_parts, index, side="right")) - 1
        file, scan = self.files[position], self.scans[position]
        first_row = (index - int(self.first_parts[position])) * self.rows_per_part
        return Part(
            index=index,
            url=file.url,
            format=file.format,
            num_bytes=file.num_bytes,
            first_row=first_row,
            num_rows=min(self.rows_per_part, scan.num_rows - first_row),
            global_first_row=int(self.first_rows[position]) + first_row,
            schema=self.schema,
            text_start=start_of(scan, first_row) if isinstance(scan, TextIndex) else None,
        )


def plan_parts(
    files: Sequence[TableFile], rows_per_part: int, *, retries: int = 6, timeout_s: float = 30.0
) -> PartPlan:
    """Counts the rows of all files and cuts them into parts of ``rows_per_part``.

    Reads the footers of parquet files, and all of CSV and JSONL files once, in bounded memory.

    Raises:
        ConfigError: if ``rows_per_part < 1``, or there is not a single row.
        SchemaError: if a file is not a table of its format; the message names it.
    """
    if rows_per_part < 1:
        raise ConfigError(f"rows_per_part must be >= 1, got {rows_per_part}")
    scans = tuple(
        map_in_order(
            lambda file: _scan(file, retries=retries, timeout_s=timeout_s),
            files,
            num_threads=_NUM_SCAN_THREADS,
        )
    )
    num_rows = np.array([0, *(scan.num_rows for scan in scans)], np.int64)
    if not num_rows.sum():
        where = files[0].url if len(files) == 1 else f"{len(files)} files, first {files[:1]}"
        raise ConfigError(f"{where}: the table has no rows; expected at least one")
    texts = [scan.kinds for scan in scans if isinstance(scan, TextIndex)]
    schemas = [scan.schema for scan in scans if isinstance(scan, ParquetScan)]
    schema = merge_schemas([schema_of_kinds(merge_kinds(texts)), *schemas])
    return PartPlan(
        files=tuple(files),
        scans=scans,
        rows_per_part=rows_per_part,
        schema=pa.schema([field for field in schema if field.name != UNREADABLE_COLUMN]),
        first_parts=np.cumsum(-(-num_rows // rows_per_part)),
        first_rows=np.cumsum(num_rows),
    )


def read_part(part: Part, *, retries: int = 6, timeout_s: float = 30.0) -> pa.Table:
    """The rows of one part: exactly ``part.num_rows``, in order.

    Returns:
        The columns of ``part.schema`` with its types, then ``_unreadable`` (text): null, or why the
        row could not be read; the cells that could not be read are null.

    Raises:
        SchemaError: if the file is no longer what the plan counted.
        StoreError: if the file cannot be read.
    """
    store, name = open_file(part.url, retries=retries, timeout_s=timeout_s)
    num_bytes = store.size(name)
    if num_bytes != part.num_bytes:
        raise changed_file(part.url, f"{num_bytes} bytes", f"{part.num_bytes}")
    with store.open_read(name) as file:
        if part.format != "parquet":
            assert part.text_start is not None
            return read_text_rows(
                file,
                text_format=part.format,
                start=part.text_start,
                num_rows=part.num_rows,
                schema=part.schema,
                url=part.url,
            )
        table, problems = read_parquet_rows(
            file, first_row=part.first_row, num_rows=part.num_rows, url=part.url
        )
    columns = {
        field.name: cast_column(table.column(field.name), field.type)
        if field.name in table.column_names
        else pa.nulls(part.num_rows, field.type)
        for field in part.schema
    }
    columns[UNREADABLE_COLUMN] = pa.array(problems, pa.string())
    return pa.table(columns)


def _scan(file: TableFile, *, retries: int, timeout_s: float) -> TextIndex | ParquetScan:
    store, name = open_file(file.url, retries=retries, timeout_s=timeout_s)
    _refuse_other_content(file, store.read_range(name, 0, 1 << 16))
    with store.open_read(name, buffer_bytes=READ_BUFFER_BYTES) as stream:
        if file.format == "parquet":
            return scan_parquet(stream, url=file.url)
        return index_text(stream, text_format=file.format, url=file.url)


def _refuse_other_content(file: TableFile, head: bytes) -> None:
    """Content that belies the file's name is told in plain words, before any parser guesses."""
    found = None
    if head.startswith((b"PAR1", b"PARE")) != (file.format == "parquet"):
        found = "parquet" if head.startswith(b"PAR") else "something that is not parquet"
    if file.format == "parquet" or found:
        pass
    elif head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh")):
        found = "a compressed file; unpack it first"
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")) or head[:200].count(0) > len(head[:200]) // 4:
        found = "UTF-16 or binary content; save it as UTF-8"
    elif file.format == "csv" and b"\r" in head and b"\n" not in head:
        found = "old Mac line ends (CR alone); save it with LF or CRLF"
    elif file.format == "jsonl" and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        found = "a JSON array; write one JSON object per line instead"
    if found:
        raise SchemaError(f"{file.url}: expected {file.format} as its name says, found {found}")
