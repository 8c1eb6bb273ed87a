"""One part of the samples dataset: a file for each bucket, and one for the rejected rows.

``parquet``     bucket=128x152/part-00012.parquet: ``samples_schema``, height before width
``webdataset``  bucket=128x152/part-00012.tar: KEY.jpg, KEY.txt (a caption per line) and KEY.json
                (every other column, and the captions exactly), and index/part-00012.parquet: the
                same columns as a table, with the column ``path`` that says where the picture is

``rejected/part-00012.parquet`` holds the rejected rows in both. Equal rows give equal bytes.
"""

import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.storage.parts import FileEntry
from sdxl_core.storage.sample_tars import distinct_keys, read_tar_table, tar_bytes
from sdxl_core.storage.staged_parts import read_parquet, unreadable
from sdxl_core.storage.stores import Store
from sdxl_core.storage.threads import map_in_order

SampleFormat = Literal["parquet", "webdataset"]
Bucket = tuple[int, int]  # height, width in pixels

# What a training worker reads at once: a batch or two, and few bytes that it does not use.
ROW_GROUP_ROWS = 64
ROW_GROUP_BYTES = 8 << 20

_SUFFIX_OF_FORMAT: dict[SampleFormat, str] = {"parquet": ".parquet", "webdataset": ".tar"}
_BUCKET_PATH = re.compile(r"bucket=([0-9]+)x([0-9]+)/part-([0-9]{5,})\.(parquet|tar)")


def bucket_path(bucket: Bucket, part: int, output_format: SampleFormat = "parquet") -> str:
    """Where the samples of ``bucket`` in ``part`` lie."""
    height, width = bucket
    return f"bucket={height}x{width}/part-{part:05d}{_SUFFIX_OF_FORMAT[output_format]}"


def bucket_of_path(path: str) -> Bucket | None:
    """The bucket (height, width) whose samples are in ``path``; None if it is no such file."""
    match = _BUCKET_PATH.fullmatch(path)
    return (int(match[1]), int(match[2])) if match else None


def rejected_path(part: int) -> str:
    """Where the rejected rows of ``part`` lie."""
    return f"rejected/part-{part:05d}.parquet"


def index_path(part: int) -> str:
    """Where the table of a part lies whose samples are in tars."""
    return f"index/part-{part:05d}.parquet"


def write_sample_part(
    store: Store,
    part: int,
    buckets: Iterable[tuple[Bucket, pa.Table]],
    *,
    output_format: SampleFormat = "parquet",
) -> list[FileEntry]:
    """Writes the samples of a part; what lies there already is replaced.

    Args:
        store: the output directory.
        part: number of the part.
        buckets: each bucket once, with its samples in the order that they are to be read in.
            Columns as in ``samples_schema``. Taken one at a time.
        output_format: parquet files or tars.

    Returns:
        The files, for the commit record.

    Raises:
        StoreError: if a file cannot be written.
    """
    assert output_format in get_args(SampleFormat), output_format
    indexes: list[pa.Table] = []

    def files() -> Iterator[tuple[str, bytes]]:
        for bucket, samples in buckets:
            path = bucket_path(bucket, part, output_format)
            if output_format == "parquet":
                yield path, parquet_bytes(samples)
                continue
            keys = distinct_keys(samples["id"].to_pylist())
            paths = [f"{path}#{key}" for key in keys]
            small = samples.drop_columns(_binary_columns(samples.schema))
            indexes.append(small.append_column("path", pa.array(paths, pa.string())))
            yield path, tar_bytes(samples, keys)

    def write(file: tuple[str, bytes]) -> FileEntry:
        return write_entry(store, *file)

    # While the disk or the network takes one file, the next one is made.
    entries = list(map_in_order(write, files(), num_threads=1, num_ahead=2))
    if indexes:
        data = parquet_bytes(pa.concat_tables(indexes), row_group_rows=1 << 16)
        entries.append(write_entry(store, index_path(part), data))
    return entries


def read_bucket_file(store: Store, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The samples in one file of a bucket, in their order, whatever its format.

    Raises:
        StoreError: if it cannot be read; the message names it.
    """
    if path.endswith(".parquet"):
        return read_parquet(store, path, columns)
    try:
        with store.open_read(path) as file:
            table = read_tar_table(file)
        return table if columns is None else table.select(list(columns))
    except (pa.ArrowException, tarfile.TarError, OSError, LookupError, ValueError) as error:
        raise unreadable(store, path, error) from error


def read_first_samples(store: Store, path: str, *, num_samples: int) -> pa.Table:
    """The first samples in one file of a bucket; of the rest no more is read than it must be.

    Raises:
        StoreError: if it cannot be read; the message names it.
    """
    try:
        with store.open_read(path) as file:
            if path.endswith(".tar"):
                return read_tar_table(file, max_rows=num_samples)
            batches = pq.ParquetFile(file).iter_batches(batch_size=num_samples)
            table = pa.Table.from_batches([next(batches)])
            return table.slice(0, num_samples)
    except (pa.ArrowException, tarfile.TarError, OSError, LookupError, ValueError) as error:
        raise unreadable(store, path, error) from error


def parquet_bytes(table: pa.Table, *, row_group_rows: int = ROW_GROUP_ROWS) -> bytes:
    """``table`` as a file with row groups of so many rows, fewer where rows are large."""
    binary = _binary_columns(table.schema)
    small = [name for name in table.column_names if name not in binary]
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=max(1, min(row_group_rows, ROW_GROUP_BYTES // row_bytes)),
        # Pictures and moments do not get smaller, and a dictionary of them would be a copy.
        compression={name: "none" if name in binary else "zstd" for name in table.column_names},
        use_dictionary=small,
        write_statistics=small,
    )
    return buffer.getvalue()


def write_entry(store: Store, path: str, data: bytes) -> FileEntry:
    """Writes one file and describes it for the commit record."""
    store.write_bytes(path, data)
    return FileEntry(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _binary_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_binary(field.type)]
