"""Finished pictures that wait for their place in the dataset, in ``_staging`` of the output.

``samples/part-00012-00003.parquet``  unit 3 of part 12: some pictures, ``staged_schema``
``rejected/part-00012.parquet``       the rows of part 12 that gave none, ``rejected_schema``
``_parts/00012.json``                 the commit record of part 12, as in every dataset

A part is what came of one slice of the source. It is written a unit at a time, so that a slice of
any size needs the memory of one unit; units are what the layout permutes and a finish task reads.
All samples of one source row are in one unit.
"""

import dataclasses
import hashlib
import io
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sdxl_core.contract.errors import SchemaError, StoreError
from sdxl_core.contract.samples import (
    SAMPLE_IMAGE_COLUMN,
    Rejection,
    Sample,
    rejected_table,
    staged_schema,
    staged_table,
)
from sdxl_core.storage.parts import FileEntry, PartRecord, read_part_records
from sdxl_core.storage.stores import Store, open_store
from sdxl_core.storage.threads import map_in_order

STAGING_FOLDER = "_staging"
UNIT_BYTES = 32 << 20
_NUM_READ_THREADS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagedIndex:
    """All units of all staged parts, by part and number. Arrays are int64, one entry per unit (U).

    ``num_parts`` counts the parts, also those without any unit because all rows were rejected.
    """

    num_parts: int
    part_U: npt.NDArray[np.int64]
    unit_U: npt.NDArray[np.int64]
    num_bytes_U: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagedRows:
    """Every source row that has samples, once, in the order of the source (R rows).

    ``content_sha256_R`` is ``S64`` (64 hex digits), ``phash_R`` uint64.
    """

    source_slice_R: npt.NDArray[np.int64]
    row_index_R: npt.NDArray[np.int64]
    ids_R: pa.ChunkedArray
    content_sha256_R: npt.NDArray[np.bytes_]
    phash_R: npt.NDArray[np.uint64]


def staging_store(store: Store) -> Store:
    """Where the staged parts of the output ``store`` lie."""
    return open_store(store.join(STAGING_FOLDER))


def unit_path(part: int, unit: int) -> str:
    """Where unit ``unit`` of staged part ``part`` lies."""
    return f"samples/part-{part:05d}-{unit:05d}.parquet"


def staged_rejected_path(part: int) -> str:
    """Where the rejected rows of staged part ``part`` lie."""
    return f"rejected/part-{part:05d}.parquet"


def write_staged(
    staging: Store,
    part: int,
    results: Iterable[Sequence[Sample] | Rejection],
    *,
    unit_bytes: int = UNIT_BYTES,
) -> PartRecord:
    """Writes what came of one slice of the source, as it comes; the caller commits the record.

    Args:
        staging: from ``staging_store``.
        part: number of the slice.
        results: for each source row its samples, at least one, or its rejection.
        unit_bytes: pictures of so many bytes make a unit, > 0.

    Returns:
        The record. Its rows are samples and rejections; ``extra`` holds ``num_source_rows`` and the
        pictures' bytes of each unit.

    Raises:
        SchemaError: a source row has two results, or none of its own.
        StoreError: a file cannot be written.
    """
    started_s = time.monotonic()
    rejections: list[Rejection] = []
    sizes: list[int] = []
    num_samples = num_kept_rows = 0

    def units() -> Iterator[pa.Table]:
        nonlocal num_samples, num_kept_rows
        for samples in _samples_of_units(results, rejections, part, unit_bytes):
            sizes.append(sum(len(sample.image) for sample in samples))
            num_samples += len(samples)
            num_kept_rows += len({sample.row_index for sample in samples})
            yield staged_table(samples, source_slice=part)

    def write(numbered: tuple[int, pa.Table]) -> FileEntry:
        return _write_table(staging, unit_path(part, numbered[0]), numbered[1])

    # While the disk or the network takes one unit, the next one is made.
    files = list(map_in_order(write, enumerate(units()), num_threads=1, num_ahead=2))
    table = rejected_table(rejections, source_slice=part)
    files.append(_write_table(staging, staged_rejected_path(part), table))
    return PartRecord(
        part=part,
        num_rows=num_samples + len(rejections),
        num_by_status={"sample": num_samples, "rejected": len(rejections)},
        num_by_reason=dict(Counter(str(rejection.reason) for rejection in rejections)),
        files=tuple(files),
        seconds=time.monotonic() - started_s,
        extra={"num_source_rows": num_kept_rows + len(rejections), "unit_bytes": sizes},
    )


def read_staged_index(staging: Store) -> StagedIndex:
    """The units of all committed staged parts. Commit records are read, no other file."""
    parts: list[int] = []
    units: list[int] = []
    sizes: list[int] = []
    num_parts = 0
    for record in read_part_records(staging):
        part_sizes = record.extra["unit_bytes"]
        parts += [record.part] * len(part_sizes)
        units += range(len(part_sizes))
        sizes += part_sizes
        num_parts = max(num_parts, record.part + 1)
    return StagedIndex(
        num_parts=num_parts,
        part_U=np.array(parts, np.int64),
        unit_U=np.array(units, np.int64),
        num_bytes_U=np.array(sizes, np.int64),
    )


def read_staged_columns(
    staging: Store, index: StagedIndex, columns: Sequence[str] | None = None
) -> pa.Table:
    """Columns of all staged samples, by part, unit and row; by default all but the pictures."""
    if columns is None:
        columns = [name for name in staged_schema().names if name != SAMPLE_IMAGE_COLUMN]
    paths = [
        unit_path(part, unit)
        for part, unit in zip(index.part_U.tolist(), index.unit_U.tolist(), strict=True)
    ]
    tables = map_in_order(
        lambda path: read_parquet(staging, path, columns), paths, num_threads=_NUM_READ_THREADS
    )
    empty = staged_schema().empty_table().select(list(columns))
    return pa.concat_tables([empty, *tables])


def read_staged_rows(staging: Store, index: StagedIndex) -> StagedRows:
    """What duplicates are looked for in: some 150 bytes for each source row that has samples."""
    names = ["source_slice", "row_index", "id", "content_sha256", "phash"]
    table = read_staged_columns(staging, index, names)
    slice_N = np.asarray(table["source_slice"].to_numpy(), np.int64)
    row_N = np.asarray(table["row_index"].to_numpy(), np.int64)
    order_N = np.lexsort((row_N, slice_N))  # stable: the first crop of a row comes first
    slice_N, row_N = slice_N[order_N], row_N[order_N]
    is_first_N = np.ones(len(order_N), np.bool_)
    is_first_N[1:] = (slice_N[1:] != slice_N[:-1]) | (row_N[1:] != row_N[:-1])
    first_R = order_N[is_first_N]
    hashes = pc.take(table["content_sha256"], first_R).to_pylist()
    return StagedRows(
        source_slice_R=slice_N[is_first_N],
        row_index_R=row_N[is_first_N],
        ids_R=pc.take(table["id"], first_R),
        content_sha256_R=np.array(hashes, "S64"),
        phash_R=np.asarray(table["phash"].to_numpy(), np.uint64)[first_R],
    )


def read_parquet(store: Store, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of one file of a dataset.

    Raises:
        StoreError: if it cannot be read; the message names it.
    """
    try:
        with store.open_read(path) as file:
            return pq.ParquetFile(file).read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise unreadable(store, path, error) from error


def unreadable(store: Store, path: str, error: Exception) -> StoreError:
    """The error of a committed file that cannot be read."""
    text = " ".join(str(error).split())[:300]
    return StoreError(
        f"{store.join(path)} cannot be read: {text}; delete the part's record in _parts and run "
        "the same command again, which makes the part anew",
        retryable=False,
    )


def _samples_of_units(
    results: Iterable[Sequence[Sample] | Rejection],
    rejections: list[Rejection],
    part: int,
    unit_bytes: int,
) -> Iterator[list[Sample]]:
    """The samples of each unit; rejections are put into their list on the way."""
    waiting: list[Sample] = []
    num_bytes = 0
    for result in _one_result_per_row(results, part):
        if isinstance(result, Rejection):
            rejections.append(result)
            continue
        waiting += result
        num_bytes += sum(len(sample.image) for sample in result)
        if num_bytes >= unit_bytes:
            yield waiting
            waiting, num_bytes = [], 0
    if waiting:
        yield waiting


def _one_result_per_row(
    results: Iterable[Sequence[Sample] | Rejection], part: int
) -> Iterator[Sequence[Sample] | Rejection]:
    row_indices: set[int] = set()
    for number, result in enumerate(results):
        samples = [result] if isinstance(result, Rejection) else result
        found = {sample.row_index for sample in samples}
        row_indices |= found
        if len(found) != 1 or len(row_indices) != number + 1:
            raise SchemaError(
                f"part {part}: result {number} is of the source rows {sorted(found)}; expected one "
                "source row that has no other result"
            )
        yield result


def _write_table(store: Store, path: str, table: pa.Table) -> FileEntry:
    buffer = io.BytesIO()
    small = [name for name in table.column_names if name != SAMPLE_IMAGE_COLUMN]
    pq.write_table(
        table,
        buffer,
        compression={name: "zstd" if name in small else "none" for name in table.column_names},
        use_dictionary=False,
        write_statistics=small,
    )
    data = buffer.getvalue()
    store.write_bytes(path, data)
    return FileEntry(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
