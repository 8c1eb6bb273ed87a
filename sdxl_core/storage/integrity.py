"""Is an output directory whole: all parts committed, all files intact, each input row there once.

In: a store with the files of ``storage.parts``. Out: counts, problems, each a sentence that names
its file, and orphans, which no commit record names; nothing is changed. Many files are read at a
time; what is kept of them is eight bytes per row and eight per file.
"""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.contract.errors import SchemaError, StoreError
from sdxl_core.storage.part_files import IMAGE_FOLDER, TABLE_FOLDER, TAR_FOLDER
from sdxl_core.storage.parts import (
    SCHEMA_FILE,
    FileEntry,
    committed_parts,
    read_dataset_info,
    read_part_record,
    read_summary,
)
from sdxl_core.storage.stores import Store
from sdxl_core.storage.threads import map_in_order

ROW_COLUMN = "input_row"
# Files that are read at the same time, in all.
NUM_READ_THREADS = 16
_CHUNK_BYTES = 1 << 20
_LISTED_AT_ONCE = 10_000
# Where files of parts lie, besides the folders of files that records name.
_FOLDERS = frozenset((TABLE_FOLDER, TAR_FOLDER, IMAGE_FOLDER))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartCheck:
    """What one part holds by its record, the input rows in its tables, and what is wrong."""

    part: int
    problems: tuple[str, ...]
    num_rows: int = 0
    num_by_status: Mapping[str, int] = dataclasses.field(default_factory=dict)
    num_files: int = 0
    num_bytes: int = 0
    input_rows: npt.NDArray[np.int64] | None = None
    """None where its tables have no column ``input_row``."""
    folders: frozenset[str] = frozenset()
    """First folders of the files that its record names."""
    path_hashes: npt.NDArray[np.uint64] = dataclasses.field(
        default_factory=lambda: np.empty(0, np.uint64)
    )
    """Of the paths that its record names; a part without a readable record has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetCheck:
    """What a whole output holds. Expected numbers are None where the dataset states none."""

    name: str
    num_parts: int
    num_parts_expected: int | None
    num_rows: int
    num_rows_expected: int | None
    num_by_status: dict[str, int]
    num_files: int
    num_bytes: int
    complete: bool
    """Are all parts in, and does the summary say so."""
    problems: tuple[str, ...]
    orphans: tuple[str, ...] = ()
    """Files beside those of the parts that no commit record names, sorted. They are no error: a
    run is at work, or was stopped, or made a row fail that an earlier attempt had made."""


def check_dataset(store: Store, *, checksums: bool = True) -> DatasetCheck:
    """Checks all that the commit records in ``store`` promise.

    A part that is not there yet is no problem: the output is then not ``complete``.

    Args:
        store: an output directory.
        checksums: read every file and compare its SHA-256; else compare sizes alone.

    Raises:
        SchemaError: this is not an output directory.
        StoreError: the store cannot be read.
    """
    info = read_dataset_info(store)
    if info is None:
        raise SchemaError(f"{store.url} is not the output of a job: it has no {SCHEMA_FILE}")
    parts = sorted(committed_parts(store))
    num_at_once = max(1, min(NUM_READ_THREADS, len(parts)))
    checks = list(
        map_in_order(
            lambda part: check_part(
                store, part, checksums=checksums, num_threads=NUM_READ_THREADS // num_at_once
            ),
            parts,
            num_threads=num_at_once,
        )
    )
    problems = [problem for check in checks for problem in check.problems]
    problems += _row_problems(checks, num_rows=info.num_rows)
    all_in = info.num_parts is None or set(parts) >= set(range(info.num_parts))
    if info.num_parts is not None:
        surplus = [part for part in parts if part >= info.num_parts]
        problems += [f"part {part}: the plan has {info.num_parts} parts only" for part in surplus]
    has_summary = read_summary(store) is not None
    if has_summary and not all_in:
        problems.append(f"there is a summary, but {len(parts)} of {info.num_parts} parts are in")
    return DatasetCheck(
        name=info.name,
        num_parts=len(parts),
        num_parts_expected=info.num_parts,
        num_rows=sum(check.num_rows for check in checks),
        num_rows_expected=info.num_rows,
        num_by_status=dict(sum((Counter(check.num_by_status) for check in checks), Counter())),
        num_files=sum(check.num_files for check in checks),
        num_bytes=sum(check.num_bytes for check in checks),
        complete=all_in and has_summary,
        problems=tuple(problems),
        orphans=tuple(_orphans(store, checks)),
    )


def check_part(
    store: Store, part: int, *, checksums: bool = True, num_threads: int = NUM_READ_THREADS
) -> PartCheck:
    """Checks the record of ``part``, the files that it names and the rows of its tables.

    Args:
        store: an output directory.
        part: its number.
        checksums: as for ``check_dataset``.
        num_threads: files that are read at the same time, >= 1.
    """
    try:
        record = read_part_record(store, part)
    except StoreError as error:
        return PartCheck(part=part, problems=(f"part {part}: {error}",))
    found = map_in_order(
        lambda entry: _file_problem(store, entry, checksums=checksums),
        record.files,
        num_threads=num_threads,
    )
    problems = [f"part {part}: {problem}" for problem in found if problem]
    tables = [entry.path for entry in record.files if entry.path.endswith(".parquet")]
    input_rows: npt.NDArray[np.int64] | None = None
    if not problems:
        try:
            columns = [_read_rows(store, path) for path in tables]
        except (pa.ArrowException, StoreError) as error:
            problems.append(f"part {part}: {error}")
        else:
            num_rows = sum(len(column) for column in columns)
            if num_rows != record.num_rows:
                problems.append(f"part {part}: {num_rows} rows, its record says {record.num_rows}")
            with_rows = [column for column in columns if column.dtype == np.int64]
            input_rows = np.concatenate(with_rows, dtype=np.int64) if with_rows else None
    return PartCheck(
        part=part,
        problems=tuple(problems),
        num_rows=record.num_rows,
        num_by_status=record.num_by_status,
        num_files=len(record.files),
        num_bytes=sum(entry.bytes for entry in record.files),
        input_rows=input_rows,
        folders=frozenset(_first_folder(entry.path) for entry in record.files),
        path_hashes=np.array([_path_hash(entry.path) for entry in record.files], np.uint64),
    )


def _orphans(store: Store, checks: Sequence[PartCheck]) -> Iterator[str]:
    """Files in the folders of parts whose names are in no record, without holding all names.

    Two names with one hash would hide an orphan, and never make one of a file that is named.
    """
    named = np.unique(np.concatenate([np.empty(0, np.uint64), *(c.path_hashes for c in checks)]))
    folders = _FOLDERS.union(*(check.folders for check in checks)) - {""}
    for folder in sorted(folders):
        listed = iter(store.iter_files(folder))
        while paths := [file.path for file in itertools.islice(listed, _LISTED_AT_ONCE)]:
            hashes = np.array([_path_hash(path) for path in paths], np.uint64)
            is_orphan = ~np.isin(hashes, named)
            yield from itertools.compress(paths, is_orphan.tolist())


def _first_folder(path: str) -> str:
    return path.partition("/")[0] if "/" in path else ""


def _path_hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")


def _file_problem(store: Store, entry: FileEntry, *, checksums: bool) -> str | None:
    """What is wrong with one file, or None. Files are read in pieces: a part's tar can be large."""
    try:
        num_bytes = store.size(entry.path)
        if num_bytes != entry.bytes:
            return f"{entry.path} has {num_bytes} bytes, its record says {entry.bytes}"
        if not checksums:
            return None
        digest = hashlib.sha256()
        with store.open_read(entry.path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except StoreError as error:
        return f"{entry.path} cannot be read: {error}"
    if digest.hexdigest() != entry.sha256:
        return f"{entry.path} has other content than its record says (SHA-256 differs)"
    return None


def _read_rows(store: Store, path: str) -> npt.NDArray[np.int64] | npt.NDArray[np.bool_]:
    """The column ``input_row`` of a table; without one, as many booleans as there are rows."""
    with store.open_read(path) as file:
        table = pq.ParquetFile(file)
        if ROW_COLUMN not in table.schema_arrow.names:
            return np.zeros(table.metadata.num_rows, dtype=np.bool_)
        column = table.read(columns=[ROW_COLUMN]).column(0)
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _row_problems(checks: Sequence[PartCheck], *, num_rows: int | None) -> list[str]:
    """Input rows that are there more than once, or cannot be in this plan.

    Rows that are missing show elsewhere: a part that is not in, or one with too few rows.
    """
    numbered = [check.input_rows for check in checks if check.input_rows is not None]
    if not numbered:
        return []
    rows, num_times = np.unique(np.concatenate(numbered), return_counts=True)
    problems = []
    if len(twice := rows[num_times > 1]):
        places = [
            check.part
            for check in checks
            if check.input_rows is not None and np.isin(check.input_rows, twice).any()
        ]
        problems.append(f"{len(twice)} input rows are there more than once, in parts {places[:20]}")
    outside = rows[(rows < 0) | (rows >= num_rows)] if num_rows is not None else rows[rows < 0]
    if len(outside):
        problems.append(f"{len(outside)} input rows are not in the plan, the first {outside[0]}")
    return problems
