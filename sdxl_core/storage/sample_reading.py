"""Reading a finished samples dataset in small units, as training wants it.

A unit is one row group of one file of a bucket, ``(path, row group)``: some tens of samples of one
size. A tar has no row groups: it is one unit, with the number 0. A unit is one request on S3, or
two if the columns wanted lie on both sides of the pictures; bytes of other columns are not
transferred. Footers are read once by each process, as the files of a dataset never change once
they are committed.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.contract.errors import SchemaError
from sdxl_core.storage.parts import PartRecord, read_part_records
from sdxl_core.storage.range_reader import RangeReader
from sdxl_core.storage.sample_parts import (
    Bucket,
    bucket_of_path,
    index_path,
    read_bucket_file,
)
from sdxl_core.storage.staged_parts import read_parquet, unreadable
from sdxl_core.storage.stores import Store
from sdxl_core.storage.threads import map_in_order

_NUM_THREADS = 16
_NUM_FOOTERS = 1024  # some 10 KB each
_FOOTER_BYTES = 1 << 16  # what is read of a file's end in the hope that the footer is in it
# Bytes that nobody wants are read along if a second request would take longer than they do.
_MAX_GAP_BYTES = 1 << 20

Span = tuple[int, int]  # first byte, and the one after the last


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleUnit:
    """Some samples of one size that lie side by side.

    Args:
        path: of their file, in the store.
        row_group: number in the file, from 0; 0 in a tar.
        num_rows: samples.
        bucket: (height, width) of their pictures, pixels.
    """

    path: str
    row_group: int
    num_rows: int
    bucket: Bucket


def iter_units(store: Store, records: Iterable[PartRecord] | None = None) -> Iterator[SampleUnit]:
    """All units of a dataset by part, path and row group; files are looked into as it goes on.

    Args:
        store: of the dataset.
        records: commit records of the parts wanted; default: of all.

    Raises:
        StoreError: a record or a footer cannot be read; the message names the file.
    """
    records = read_part_records(store) if records is None else records
    yield from itertools.chain.from_iterable(
        map_in_order(lambda record: _units_of(store, record), records, num_threads=_NUM_THREADS)
    )


def read_unit(
    store: Store, path: str, row_group: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """The samples of one unit, in their order.

    Args:
        store: of the dataset.
        path: of the file, in the store.
        row_group: number in the file; 0 for a tar.
        columns: wanted, in the order wanted; default: all.

    Raises:
        StoreError: the file cannot be read.
        SchemaError: it has no such row group or no such column.
    """
    if path.endswith(".tar"):
        _require(store, path, row_group, num_row_groups=1)
        return read_bucket_file(store, path, columns)
    footer = _footer(store, path)
    _require(store, path, row_group, num_row_groups=footer.num_row_groups)
    there = footer.schema.to_arrow_schema().names
    columns = there if columns is None else list(columns)
    if not set(columns) <= set(there):
        raise SchemaError(
            f"{store.join(path)} has no column {sorted(set(columns) - set(there))}; it has {there}"
        )
    spans = _merged(_spans(footer, row_group, set(columns)))
    pieces = [(start, store.read_range(path, start, stop)) for start, stop in spans]
    file = RangeReader(functools.partial(_read_of, pieces), spans[-1][1] if spans else 0)
    try:
        # All that is wanted is in memory: reading ahead would only copy it.
        table = pq.ParquetFile(file, metadata=footer, pre_buffer=False).read_row_group(
            row_group, columns=columns, use_threads=False
        )
    except (pa.ArrowException, OSError) as error:
        raise unreadable(store, path, error) from error
    return table.select(columns)


def _units_of(store: Store, record: PartRecord) -> list[SampleUnit]:
    units = []
    num_in_tar: Counter[str] = Counter()
    if any(entry.path.endswith(".tar") for entry in record.files):
        places = read_parquet(store, index_path(record.part), ["path"])["path"].to_pylist()
        num_in_tar.update(place.partition("#")[0] for place in places)
    for path in sorted(entry.path for entry in record.files):
        bucket = bucket_of_path(path)
        if bucket is None:  # the rejected rows, the index of tars
            continue
        counts = [num_in_tar[path]] if path.endswith(".tar") else _row_counts(_footer(store, path))
        units += [
            SampleUnit(path=path, row_group=number, num_rows=count, bucket=bucket)
            for number, count in enumerate(counts)
        ]
    return units


def _row_counts(footer: pq.FileMetaData) -> list[int]:
    return [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]


@functools.lru_cache(maxsize=_NUM_FOOTERS)
def _footer(store: Store, path: str) -> pq.FileMetaData:
    try:
        with store.open_read(path, buffer_bytes=_FOOTER_BYTES) as file:
            return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(store, path, error) from error


def _require(store: Store, path: str, row_group: int, *, num_row_groups: int) -> None:
    if not 0 <= row_group < num_row_groups:
        raise SchemaError(
            f"{store.join(path)} has {num_row_groups} row groups, but number {row_group} was asked "
            "for; the plan was made for other files, make it anew"
        )


def _spans(footer: pq.FileMetaData, row_group: int, columns: set[str]) -> list[Span]:
    """Where the columns' bytes lie, by place."""
    group = footer.row_group(row_group)
    spans = []
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema.partition(".")[0] in columns:
            start = chunk.data_page_offset
            if chunk.has_dictionary_page:
                start = min(start, chunk.dictionary_page_offset)
            spans.append((start, start + chunk.total_compressed_size))
    return sorted(spans)


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Fewer spans over the same bytes, and over the small gaps between them."""
    merged: list[Span] = []
    for start, stop in spans:
        if merged and start - merged[-1][1] <= _MAX_GAP_BYTES:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged


def _read_of(pieces: Sequence[tuple[int, bytes]], start: int, stop: int) -> bytes:
    for first, data in pieces:
        if first <= start < first + len(data):
            return data[start - first : stop - first]
    raise OSError(f"bytes {start} to {stop} are not there")
