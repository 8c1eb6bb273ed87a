"""Tables of a source: their columns chosen once, each file cut into slices."""

import dataclasses
import posixpath
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.storage.cell_types import schema_of_kinds
from sdxl_core.storage.parquet_rows import scan_parquet
from sdxl_core.storage.source_columns import check_columns, choose_columns
from sdxl_core.storage.source_members import DEFAULT_CAPTION_KEY
from sdxl_core.storage.source_tables import read_cells
from sdxl_core.storage.source_units import RowGroups, TableCuts, cut_row_groups, cut_text
from sdxl_core.storage.stores import open_file
from sdxl_core.storage.table_files import TableFile
from sdxl_core.storage.text_lines import READ_BUFFER_BYTES
from sdxl_core.storage.text_tables import TextIndex, index_text
from sdxl_core.storage.threads import map_in_order

_NUM_SCAN_THREADS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableRequest:
    """What was asked for; ``plan_sources`` says what each one is."""

    image: str | None
    uri: str | None
    caption: str | None
    caption_key: str = DEFAULT_CAPTION_KEY
    rows_per_slice: int
    bytes_per_slice: int
    retries: int
    timeout_s: float
    within_folder: bool = False


def plan_table(files: Sequence[TableFile], request: TableRequest) -> Iterator[TableCuts]:
    """The slices of a table's files, all with the columns that the first file decides.

    Raises:
        SchemaError: if a file is no table of its format, or lacks a column.
    """
    columns = None
    scans = map_in_order(
        lambda file: (file, *_scan(file, request)), files, num_threads=_NUM_SCAN_THREADS
    )
    for file, schema, scan in scans:
        if columns is None:
            columns = choose_columns(
                schema,
                url=file.url,
                is_text=file.format != "parquet",
                image=request.image,
                uri=request.uri,
                caption=request.caption,
                within_folder=request.within_folder,
            )
        elif file.format == "parquet":  # rows of text tables may have any keys
            check_columns(schema, columns, url=file.url)
        if isinstance(scan, TextIndex):
            yield cut_text(file, scan, columns, rows_per_slice=request.rows_per_slice)
            continue
        yield cut_row_groups(
            file,
            scan,
            columns,
            rows_per_slice=request.rows_per_slice,
            bytes_per_slice=request.bytes_per_slice,
        )


def referenced_files(cuts: TableCuts, request: TableRequest, *, folder: str) -> set[int]:
    """Hashes of the paths, relative to the source, that the rows of a ``metadata`` table name."""
    found: set[int] = set()
    for number in range(cuts.num_slices):
        piece = cuts.piece(number)
        for cells in read_cells(piece, retries=request.retries, timeout_s=request.timeout_s):
            uri = cells.values.get(cuts.columns.uri or "")
            if isinstance(uri, str):
                found.add(hash(posixpath.normpath(posixpath.join(folder, uri))))
    return found


def _scan(file: TableFile, request: TableRequest) -> tuple[pa.Schema, TextIndex | RowGroups]:
    store, name = open_file(file.url, retries=request.retries, timeout_s=request.timeout_s)
    with store.open_read(name, buffer_bytes=READ_BUFFER_BYTES) as stream:
        if file.format != "parquet":
            index = index_text(stream, text_format=file.format, url=file.url)
            return schema_of_kinds(index.kinds), index
        scan = scan_parquet(stream, url=file.url)
        stream.seek(0)
        metadata = pq.read_metadata(stream)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return scan.schema, RowGroups(
        num_rows=np.array([group.num_rows for group in groups], np.int64),
        num_bytes=np.array([group.total_byte_size for group in groups], np.int64),
        digest=scan.digest,
    )
