"""Writes the results of one part, and reads results back.

``files``       images/part-00012/ID.png, and a row per image in table/part-00012.parquet
``parquet``     the image bytes in the column ``image`` of table/part-00012.parquet
``webdataset``  shards/part-00012.tar with ID.png, ID.json, ID.txt, and the table as above
``dry``         the table alone

In every case the table has a row for each input row, made or failed; its column ``path`` says where
the image is: a file, or ``FILE.tar#MEMBER``, or ``FILE.parquet#ROW``. Equal results give equal
bytes. The commit record is not written here (``sdxl_core.storage.parts``). Names of files that
belong to parts that are opened again: ``sdxl_core.storage.part_files``.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sdxl_core.contract.errors import SchemaError, StoreError
from sdxl_core.contract.images import IMAGE_COLUMN
from sdxl_core.storage.file_names import file_name_of_id
from sdxl_core.storage.image_files import SUFFIXES, ImageFormat
from sdxl_core.storage.part_files import image_path, part_of_table, table_path, tar_path
from sdxl_core.storage.parts import FileEntry, PartRecord, committed_parts, read_part_record
from sdxl_core.storage.stores import Store
from sdxl_core.storage.threads import map_in_order

OutputFormat = Literal["files", "parquet", "webdataset", "dry"]

_NUM_WRITE_THREADS = 8
_ROW_GROUP_BYTES = 32 << 20


def write_part_files(
    store: Store,
    part: int,
    table: pa.Table,
    images: Sequence[bytes | None],
    *,
    output_format: OutputFormat,
    image_format: ImageFormat,
    committed: PartRecord | None = None,
) -> list[FileEntry]:
    """Writes all files of a part but its commit record; what lies there already is replaced.

    Args:
        store: The output directory.
        part: Number of the part.
        table: A row for each input row of the part, with a column ``id``. Its columns are written
            as they are, with ``path`` and ``sha256`` filled in, or added at the end.
        images: The encoded image of each row; None for a row without.
        output_format: Where the images go.
        image_format: What they are, for the names of files.
        committed: The record of the part, if it is opened again. No file that it names is touched:
            the new table and tar have other names, and rows of ``table`` that have a ``path`` keep
            it, and their ``sha256``, without an image here. ``parquet`` wants the image of every
            row, because they move into the new table.

    Returns:
        The files, for the commit record.

    Raises:
        SchemaError: if rows and images do not match, or two images of the part have one id.
        StoreError: if a file cannot be written.
    """
    if len(images) != table.num_rows:
        raise SchemaError(f"part {part}: {len(images)} images for {table.num_rows} rows")
    if output_format == "dry":
        images = [None] * len(images)
    hashes = [None if image is None else _sha256(image) for image in images]
    token = "" if committed is None else _token(table, hashes)
    if output_format == "parquet":
        container = table_path(part, token)
        table = _with_images(table, images, hashes, container)
        return [_write(store, container, _parquet_bytes(table))]
    names = _file_names(table, images, SUFFIXES[image_format], part)
    entries: list[FileEntry] = []
    if committed is not None:
        entries = [file for file in committed.files if part_of_table(file.path) is None]
    if output_format == "webdataset":
        container = tar_path(part, token)
        members = [name and f"{container}#{name}" for name in names]
        table = _with_places(table, members, hashes, keep=committed is not None)
        if committed is None or any(names):
            tar = _tar_bytes(table, images, SUFFIXES[image_format])
            entries.append(_write(store, container, tar))
    else:
        paths = [name and image_path(part, name) for name in names]
        _refuse_taken({file.path for file in entries}.intersection(paths), part)
        entries += _write_images(store, paths, images)
        table = _with_places(table, paths, hashes, keep=committed is not None)
    entries.append(_write(store, table_path(part, token), _parquet_bytes(table)))
    return entries


def _with_images(
    table: pa.Table, images: Sequence[bytes | None], hashes: Sequence[str | None], container: str
) -> pa.Table:
    rows = [None if image is None else f"{container}#{n}" for n, image in enumerate(images)]
    column = pa.chunked_array([pa.array(images, pa.binary())], pa.binary())
    return _with_places(_with_column(table, IMAGE_COLUMN, column), rows, hashes)


def read_output_table(
    store: Store, columns: Sequence[str] | None = None, parts: Iterable[int] | None = None
) -> Iterator[pa.Table]:
    """The tables of committed parts, one after another in the order of the parts.

    Args:
        store: The output directory.
        columns: What to read; default all but the image bytes.
        parts: Which parts; default all committed ones.

    Raises:
        StoreError: if a table cannot be read; the message names it.
    """
    chosen = sorted(committed_parts(store)) if parts is None else parts
    return map_in_order(
        lambda part: read_part_table(store, read_part_record(store, part), columns),
        chosen,
        num_threads=_NUM_WRITE_THREADS,
    )


def read_part_table(
    store: Store, record: PartRecord, columns: Sequence[str] | None = None
) -> pa.Table:
    """The table of one committed part, by default without the image bytes."""
    paths = [file.path for file in record.files if part_of_table(file.path) is not None]
    if len(paths) != 1:
        raise StoreError(
            f"{store.url}: the commit record of part {record.part} names {len(paths)} tables, "
            "expected one; is this the output of generate?",
            retryable=False,
        )
    return _read_parquet(store, paths[0], columns)


def read_part_images(store: Store, table: pa.Table) -> dict[int, bytes]:
    """The encoded images of all rows that have one, by ``input_row``; each file is opened once."""
    rows = table.select(["input_row", "path"]).to_pylist()
    found: dict[int, bytes] = {}
    members: dict[str, dict[str, int]] = {}
    for row in rows:
        container, _, member = (row["path"] or "").partition("#")
        if member:
            members.setdefault(container, {})[member] = row["input_row"]
        elif container:
            found[row["input_row"]] = store.read_bytes(container)
    for container, input_rows in members.items():
        for member, data in _read_members(store, container, set(input_rows)):
            found[input_rows[member]] = data
    return found


def read_image(store: Store, row: Mapping[str, Any]) -> bytes:
    """The encoded image of one row of the output table, whatever format the output has.

    Raises:
        SchemaError: if the row has no image.
        StoreError: if the image is not where the row says.
    """
    if row.get(IMAGE_COLUMN) is not None:
        return bytes(row[IMAGE_COLUMN])
    container, _, member = (row.get("path") or "").partition("#")
    if not container:
        raise SchemaError(f"row {row.get('id')!r} has no image (status {row.get('status')!r})")
    if not member:
        return store.read_bytes(container)
    for _, data in _read_members(store, container, {member}):
        return data
    raise StoreError(f"{store.join(container)} holds no image {member}", retryable=False)


def _file_names(
    table: pa.Table, images: Sequence[bytes | None], suffix: str, part: int
) -> list[str | None]:
    ids = table.column("id").to_pylist()
    names = [
        None if image is None else f"{file_name_of_id(str(row_id))}{suffix}"
        for row_id, image in zip(ids, images, strict=True)
    ]
    used = [name for name in names if name]
    if len(set(used)) != len(used):
        twice = next(name for name in used if used.count(name) > 1)
        raise SchemaError(
            f"part {part}: two images have the id {ids[names.index(twice)]!r}; expected one image "
            "for an id, the other row failed as duplicate_id"
        )
    return names


def _write_images(
    store: Store, paths: Sequence[str | None], images: Sequence[bytes | None]
) -> Iterator[FileEntry]:
    made = [(p, image) for p, image in zip(paths, images, strict=True) if p and image is not None]
    return map_in_order(
        lambda item: _write(store, item[0], item[1]), made, num_threads=_NUM_WRITE_THREADS
    )


def _write(store: Store, path: str, data: bytes) -> FileEntry:
    store.write_bytes(path, data)
    return FileEntry(path=path, bytes=len(data), sha256=_sha256(data))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _token(table: pa.Table, hashes: Sequence[str | None]) -> str:
    """Eight hex digits that name this result: another one, even of equal images, has others."""
    column = pa.array(hashes, pa.string())
    return _sha256(_parquet_bytes(_with_column(table, "sha256", column)))[:8]


def _refuse_taken(taken: set[str], part: int) -> None:
    if taken:
        raise SchemaError(
            f"part {part}: {min(taken)} belongs to a row that was made before; expected one image "
            "for an id, the other row failed as duplicate_id"
        )


def _with_places(
    table: pa.Table,
    paths: Sequence[str | None],
    hashes: Sequence[str | None],
    *,
    keep: bool = False,
) -> pa.Table:
    """Sets ``path`` and ``sha256``; ``keep``: where a row has no new one, its old one stays."""
    for name, new in (("path", paths), ("sha256", hashes)):
        column = pa.array(new, pa.string())
        if keep:
            column = pc.coalesce(column, table.column(name))
        table = _with_column(table, name, column)
    return table


def _with_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    field = pa.field(name, column.type)
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), field, column)
    return table.append_column(field, column)


def _tar_bytes(table: pa.Table, images: Sequence[bytes | None], suffix: str) -> bytes:
    from webdataset import TarWriter  # imports torch's data loading

    buffer = io.BytesIO()
    with TarWriter(buffer, encoder=False, mtime=0) as tar:
        for row, image in zip(table.to_pylist(), images, strict=True):
            if image is None:
                continue
            text = json.dumps(row, ensure_ascii=False, default=str)
            tar.write(
                {
                    "__key__": file_name_of_id(str(row["id"])),
                    suffix[1:]: image,
                    "json": text.encode("utf-8", "backslashreplace"),
                    "txt": (row.get("prompt") or "").encode("utf-8", "backslashreplace"),
                }
            )
    return buffer.getvalue()


def _parquet_bytes(table: pa.Table) -> bytes:
    """The table as a file. Row groups are small in bytes, so that one image is cheap to reach."""
    small = [name for name in table.column_names if name != IMAGE_COLUMN]
    row_bytes = max(1, table.nbytes // max(1, table.num_rows))
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=max(1, _ROW_GROUP_BYTES // row_bytes),
        # Images are compressed already, and a dictionary of them would be a copy.
        compression={
            name: "none" if name == IMAGE_COLUMN else "zstd" for name in table.column_names
        },
        use_dictionary=small,
        write_statistics=small,
    )
    return buffer.getvalue()


def _read_parquet(store: Store, path: str, columns: Sequence[str] | None) -> pa.Table:
    try:
        with store.open_read(path) as file:
            parquet = pq.ParquetFile(file)
            if columns is None:
                columns = [name for name in parquet.schema_arrow.names if name != IMAGE_COLUMN]
            return parquet.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(store, path, error) from error


def _read_members(store: Store, container: str, members: set[str]) -> Iterator[tuple[str, bytes]]:
    """The named members of a tar, or the numbered rows of a parquet file, that are there."""
    try:
        with store.open_read(container) as file:
            if container.endswith(".tar"):
                yield from _read_tar(file, members)
            else:
                yield from _read_image_column(file, members)
    except (pa.ArrowException, tarfile.TarError, OSError, ValueError) as error:
        raise _damaged(store, container, error) from error


def _read_tar(file: Any, members: set[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name in members else None
            if content is not None:
                yield member.name, content.read()


def _read_image_column(file: Any, members: set[str]) -> Iterator[tuple[str, bytes]]:
    parquet = pq.ParquetFile(file)
    rows = {int(member) for member in members}
    first_row = 0
    for group in range(parquet.metadata.num_row_groups):
        stop_row = first_row + parquet.metadata.row_group(group).num_rows
        wanted = sorted(row for row in rows if first_row <= row < stop_row)
        if wanted:
            column = parquet.read_row_group(group, columns=[IMAGE_COLUMN]).column(0)
            for row in wanted:
                data = column[row - first_row].as_py()
                if data is not None:
                    yield str(row), data
        first_row = stop_row


def _damaged(store: Store, path: str, error: Exception) -> StoreError:
    text = " ".join(str(error).split())[:300]
    return StoreError(
        f"{store.join(path)} cannot be read: {text}; `sdxl fsck` tells what else is damaged, and a "
        "part whose record in _parts is deleted is made anew by the next run",
        retryable=False,
    )
