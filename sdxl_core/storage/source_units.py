"""The pieces that a plan is made of: archives, one table's file, a folder. Each cuts by arithmetic.

A unit holds a few numbers for each slice, never one for each row, but for the names of the files in
a folder, which are kept compressed.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from sdxl_core.storage.source_folder import FolderRow, pack_rows
from sdxl_core.storage.source_slices import SourceColumns, SourceSlice
from sdxl_core.storage.stores import StoredFile
from sdxl_core.storage.table_files import TableFile
from sdxl_core.storage.text_tables import ROWS_PER_MARK, TextIndex, TextStart, start_of

Int64s = np.ndarray[Any, np.dtype[np.int64]]


class Unit(Protocol):
    """Some slices of one source."""

    @property
    def num_slices(self) -> int:
        """How many."""
        ...

    @property
    def num_rows(self) -> int | None:
        """Rows of all of them, None where only reading tells."""
        ...

    @property
    def digest(self) -> str:
        """Identity of what was found, hex."""
        ...

    def piece(self, number: int) -> SourceSlice:
        """Slice ``number`` of the unit, from 0; its ``index`` and ``source_index`` are 0."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Archives:
    """Tars, one slice each."""

    folder: str
    paths: tuple[str, ...]
    num_bytes: Int64s
    caption_key: str
    digest: str
    num_rows: None = None

    @property
    def num_slices(self) -> int:
        """One for each archive."""
        return len(self.paths)

    def piece(self, number: int) -> SourceSlice:
        """One archive."""
        return SourceSlice(
            index=0,
            source_index=0,
            kind="webdataset",
            format="tar",
            url=f"{self.folder.rstrip('/')}/{self.paths[number]}",
            num_bytes=int(self.num_bytes[number]),
            caption_key=self.caption_key,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowGroups:
    """Rows and bytes of the row groups of a parquet file, each ``(G,)``; digest of its footer."""

    num_rows: Int64s
    num_bytes: Int64s
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableCuts:
    """One file of a table, cut at ``first_rows`` ``(S + 1,)``.

    ``marks`` ``(S + 1,)`` is the first row group of each slice (parquet), or its first byte;
    ``lines`` ``(S + 1,)`` the number of the line there, ``header`` that of a CSV file.
    """

    file: TableFile
    columns: SourceColumns
    first_rows: Int64s
    marks: Int64s
    lines: Int64s
    header: tuple[str, ...]
    digest: str

    @property
    def num_slices(self) -> int:
        """0 for a file without rows."""
        return len(self.first_rows) - 1

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return int(self.first_rows[-1])

    def piece(self, number: int) -> SourceSlice:
        """Some row groups, or some lines."""
        is_parquet = self.file.format == "parquet"
        first, stop = int(self.marks[number]), int(self.marks[number + 1])
        return SourceSlice(
            index=0,
            source_index=0,
            kind="table",
            format=self.file.format,
            url=self.file.url,
            num_bytes=self.file.num_bytes,
            first_row=int(self.first_rows[number]),
            num_rows=int(self.first_rows[number + 1] - self.first_rows[number]),
            first_row_group=first if is_parquet else 0,
            num_row_groups=stop - first if is_parquet else 0,
            columns=self.columns,
            text_start=None
            if is_parquet
            else TextStart(
                offset=first, line=int(self.lines[number]), num_skipped=0, header=self.header
            ),
            stop_byte=0 if is_parquet else stop,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderFiles:
    """Pictures of a folder: the names of each slice, packed, their number and size."""

    url: str
    packed: tuple[bytes, ...]
    counts: Int64s
    num_bytes: Int64s
    caption_key: str
    digest: str

    @property
    def num_slices(self) -> int:
        """0 for a folder without rows."""
        return len(self.packed)

    @property
    def num_rows(self) -> int:
        """Pictures, and captions without one."""
        return int(self.counts.sum())

    def piece(self, number: int) -> SourceSlice:
        """Some pictures and what lies beside them."""
        return SourceSlice(
            index=0,
            source_index=0,
            kind="folder",
            format="files",
            url=self.url,
            num_bytes=int(self.num_bytes[number]),
            num_rows=int(self.counts[number]),
            packed_rows=self.packed[number],
            caption_key=self.caption_key,
        )


def archives(folder: str, files: Sequence[StoredFile], *, caption_key: str) -> Archives:
    """A unit of tars below ``folder``."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.path} {file.num_bytes}\n".encode(errors="surrogateescape"))
    return Archives(
        folder=folder,
        paths=tuple(file.path for file in files),
        num_bytes=np.array([file.num_bytes for file in files], np.int64),
        caption_key=caption_key,
        digest=digest.hexdigest(),
    )


def cut_row_groups(
    file: TableFile,
    groups: RowGroups,
    columns: SourceColumns,
    *,
    rows_per_slice: int,
    bytes_per_slice: int,
) -> TableCuts:
    """Whole row groups of a parquet file, as many as fit in a slice and at least one."""
    marks, first_rows = [0], [0]
    num_rows = num_bytes = 0
    for number, (more_rows, more_bytes) in enumerate(
        zip(groups.num_rows.tolist(), groups.num_bytes.tolist(), strict=True)
    ):
        is_full = num_rows + more_rows > rows_per_slice or num_bytes + more_bytes > bytes_per_slice
        if num_rows and is_full:
            marks.append(number)
            first_rows.append(first_rows[-1] + num_rows)
            num_rows = num_bytes = 0
        num_rows, num_bytes = num_rows + more_rows, num_bytes + more_bytes
    if num_rows:
        marks.append(len(groups.num_rows))
        first_rows.append(first_rows[-1] + num_rows)
    return TableCuts(
        file=file,
        columns=columns,
        first_rows=np.array(first_rows, np.int64),
        marks=np.array(marks, np.int64),
        lines=np.zeros(len(marks), np.int64),
        header=(),
        digest=groups.digest,
    )


def cut_text(
    file: TableFile, index: TextIndex, columns: SourceColumns, *, rows_per_slice: int
) -> TableCuts:
    """A CSV or JSONL file, cut where its index has marks."""
    step = max(1, rows_per_slice // ROWS_PER_MARK)
    rows = np.arange(0, index.num_rows, step * ROWS_PER_MARK)
    return TableCuts(
        file=file,
        columns=columns,
        first_rows=np.append(rows, index.num_rows).astype(np.int64),
        marks=np.append(index.offsets[::step], file.num_bytes).astype(np.int64),
        lines=np.append(index.lines[::step], 0).astype(np.int64),
        header=start_of(index, 0).header if index.num_rows else (),
        digest=index.digest,
    )


def cut_folder(
    url: str,
    rows: Iterable[FolderRow],
    *,
    rows_per_slice: int,
    bytes_per_slice: int,
    caption_key: str,
) -> FolderFiles:
    """Rows of a folder, in their order; the digest covers names and sizes."""
    digest = hashlib.blake2b(digest_size=16)
    packed: list[bytes] = []
    counts: list[int] = []
    sizes: list[int] = []
    for some in _chunks(rows, rows_per_slice, bytes_per_slice):
        for row in some:
            digest.update(f"{row.image} {row.num_bytes} {row.key} {row.beside}\n".encode(
                errors="surrogateescape"
            ))  # fmt: skip
        packed.append(pack_rows(some))
        counts.append(len(some))
        sizes.append(sum(row.num_bytes for row in some))
    return FolderFiles(
        url=url,
        packed=tuple(packed),
        counts=np.array(counts, np.int64),
        num_bytes=np.array(sizes, np.int64),
        caption_key=caption_key,
        digest=digest.hexdigest(),
    )


def _chunks(
    rows: Iterable[FolderRow], most_rows: int, most_bytes: int
) -> Iterator[list[FolderRow]]:
    some: list[FolderRow] = []
    num_bytes = 0
    for row in rows:
        if some and (len(some) == most_rows or num_bytes + row.num_bytes > most_bytes):
            yield some
            some, num_bytes = [], 0
        some.append(row)
        num_bytes += row.num_bytes
    if some:
        yield some
