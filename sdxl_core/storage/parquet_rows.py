"""Rows of parquet files: counted from the footer, read from the row groups that hold them."""

import dataclasses
import hashlib
import logging
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.contract.errors import SchemaError
from sdxl_core.storage.store_errors import local_error

logger = logging.getLogger(__name__)

BATCH_ROWS = 8192
STREAM_BUFFER_BYTES = 4 << 20
LARGE_ROW_GROUP_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetScan:
    """What the footer of a parquet file says. ``digest`` is that of the footer, hex."""

    num_rows: int
    schema: pa.Schema
    digest: str


def scan_parquet(file: BinaryIO, *, url: str) -> ParquetScan:
    """Reads the footer.

    Raises:
        SchemaError: if the file is cut off or not parquet, or two columns have one name.
    """
    try:
        parquet = pq.ParquetFile(file)
        metadata, schema = parquet.metadata, parquet.schema_arrow
        file.seek(-8, 2)
        footer_bytes = int.from_bytes(file.read(4), "little")
        file.seek(-8 - footer_bytes, 2)
        footer = file.read(footer_bytes)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(
            f"{url}: not a readable parquet file ({_one_line(error)}); was it written to its end?"
        ) from error
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise SchemaError(f"{url}: column names must differ, found twice: {', '.join(repeated)}")
    groups = [metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)]
    if max(groups, default=0) > LARGE_ROW_GROUP_BYTES:
        logger.warning(
            "%s has row groups of up to %d MiB: each part reads from the start of its row group; "
            "writing the table with smaller row groups makes that faster",
            url,
            max(groups) >> 20,
        )
    digest = hashlib.blake2b(footer, digest_size=16).hexdigest()
    return ParquetScan(num_rows=metadata.num_rows, schema=schema, digest=digest)


def read_parquet_rows(
    file: BinaryIO, *, first_row: int, num_rows: int, url: str
) -> tuple[pa.Table, list[str | None]]:
    """Rows ``first_row`` on, streamed in batches: memory does not grow with the row group.

    Returns:
        The rows, and for each one None or the reason why it cannot be read. If the data is damaged
        so that nothing can be decoded, the table has no columns and every row has the reason: a
        damaged row group costs the rows of its parts and not the table.

    Raises:
        StoreError: if the bytes cannot be read, as opposed to decoded.
    """
    where = f"{url}, rows {first_row} to {first_row + num_rows - 1}"
    try:
        parquet = pq.ParquetFile(file, buffer_size=STREAM_BUFFER_BYTES, pre_buffer=False)
        table = _rows(parquet, first_row, num_rows)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise local_error(error, action="read", url=url) from error
        return pa.table({}), [f"{where}: damaged parquet data: {_one_line(error)}"] * num_rows
    if table.num_rows != num_rows:
        found = f"the row groups hold only {table.num_rows} of them"
        return pa.table({}), [f"{where}: {found}"] * num_rows
    problems: list[str | None] = [None] * num_rows
    for position, name in enumerate(table.column_names):
        column, bad_rows = _text_that_decodes(table.column(position))
        if bad_rows:
            table = table.set_column(position, name, column)
        for row in bad_rows:
            problems[row] = f"{url}, row {first_row + row}: column {name!r} is not UTF-8"
    return table, problems


def _text_that_decodes(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
    """The column with null for text that is not UTF-8, and the rows where that was.

    Parquet readers do not check; the first one to look at such a cell would stumble over it.
    """
    try:
        column.validate(full=True)
        return column, []
    except pa.ArrowInvalid:
        pass
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return pa.chunked_array([pa.nulls(len(column), column.type)]), list(range(len(column)))
    raw = column.cast(pa.large_binary()).to_pylist()
    bad_rows = [row for row, cell in enumerate(raw) if cell is not None and not _is_utf8(cell)]
    bad = set(bad_rows)
    cells = [None if row in bad or cell is None else cell.decode() for row, cell in enumerate(raw)]
    return pa.chunked_array([pa.array(cells, column.type)]), bad_rows


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _rows(parquet: pq.ParquetFile, first_row: int, num_rows: int) -> pa.Table:
    groups, num_before = _overlapping_groups(parquet.metadata, first_row, num_rows)
    start, stop = first_row - num_before, first_row - num_before + num_rows
    taken: list[pa.RecordBatch] = []
    position = 0
    for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=groups):
        low, high = max(start - position, 0), min(stop - position, batch.num_rows)
        if low < high:
            taken.append(batch.slice(low, high - low))
        position += batch.num_rows
        if position >= stop:
            break
    return pa.Table.from_batches(taken, schema=parquet.schema_arrow)


def _overlapping_groups(
    metadata: pq.FileMetaData, first_row: int, num_rows: int
) -> tuple[list[int], int]:
    """Row groups that hold some of the rows, and the number of rows before the first of them."""
    groups: list[int] = []
    num_before = position = 0
    for number in range(metadata.num_row_groups):
        next_position = position + metadata.row_group(number).num_rows
        if next_position <= first_row:
            num_before = next_position
        elif position < first_row + num_rows:
            groups.append(number)
        position = next_position
    return groups, num_before


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
