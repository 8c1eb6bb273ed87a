"""Which files a prompt table is made of: one file, a folder or a glob; local or on S3."""

import dataclasses
import itertools
import os
import posixpath
import re
from collections.abc import Iterator
from typing import Literal

from fsspec.utils import glob_translate

from sdxl_core.contract.errors import ConfigError, SchemaError
from sdxl_core.storage.part_files import TABLE_FOLDER, part_of_table
from sdxl_core.storage.parts import SCHEMA_FILE, committed_parts, read_part_record
from sdxl_core.storage.store_paths import local_path_of
from sdxl_core.storage.stores import Store, StoredFile, open_file, open_store

TableFormat = Literal["parquet", "csv", "jsonl"]

_FORMATS: dict[str, TableFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_EXPECTED = "expected .parquet, .csv or .jsonl (.ndjson), not compressed as a whole"
_MAGIC = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableFile:
    """One file of a table, not opened yet."""

    url: str
    format: TableFormat
    num_bytes: int


def find_table_files(
    url_or_glob: str, *, retries: int = 6, timeout_s: float = 30.0
) -> list[TableFile]:
    """The files of a table, sorted by path: their order is the order of the rows.

    A folder stands for all tables below it; names that begin with ``_`` or ``.`` are left out, and
    so is whatever is no table. The output directory of a run stands for its committed rows.

    Args:
        url_or_glob: A file, a folder, or a pattern with ``*``, ``?``, ``[…]`` or ``**``, as a local
            path or ``s3://`` URL. An existing file or local folder is taken literally whatever
            its name.
        retries: How often a passing failure of the store is tried again.
        timeout_s: Longest wait for the store, seconds.

    Raises:
        ConfigError: if nothing is there or nothing matches.
        SchemaError: if what is there is no table, or tables of more than one format.
    """
    if not url_or_glob.startswith(("s3://", "s3a://")) and url_or_glob:
        url_or_glob = os.path.abspath(os.path.expanduser(local_path_of(url_or_glob)))
    store, name = open_file(url_or_glob, retries=retries, timeout_s=timeout_s)
    if name and store.exists(name):
        return [_table_file(store, StoredFile(name, store.size(name)))]
    if _MAGIC.search(url_or_glob) and not os.path.isdir(url_or_glob):
        folder, pattern = _split_glob(url_or_glob)
        store = open_store(folder, retries=retries, timeout_s=timeout_s)
        matches = re.compile(glob_translate(pattern)).match
        found = [file for file in store.iter_files() if matches(file.path)]
    else:
        store = open_store(url_or_glob, retries=retries, timeout_s=timeout_s)
        found = _tables_of_folder(store)
    if not found:
        raise ConfigError(
            f"{url_or_glob}: no table found there; expected a file, a folder or a pattern that "
            "matches some of .parquet, .csv, .jsonl"
        )
    files = [_table_file(store, file) for file in found]
    formats = sorted({file.format for file in files})
    if len(formats) > 1:
        raise SchemaError(
            f"{url_or_glob}: found tables of {' and '.join(formats)} side by side, which may be "
            "the same rows twice; name one file, or a pattern like '*.parquet'"
        )
    return files


def _tables_of_folder(store: Store) -> list[StoredFile]:
    if store.exists(SCHEMA_FILE):  # the output of a run: rows of unfinished parts do not exist
        return list(_committed_tables(store))
    return [
        file
        for file in store.iter_files()
        if not any(part.startswith(("_", ".")) for part in file.path.split("/"))
        and posixpath.splitext(file.path)[1].lower() in _FORMATS
    ]


def _committed_tables(store: Store) -> Iterator[StoredFile]:
    """One table for each finished part; of several, the one that the part's record names."""
    parts = committed_parts(store)
    for part, found in itertools.groupby(
        store.iter_files(TABLE_FOLDER), key=lambda file: part_of_table(file.path)
    ):
        tables = list(found) if part in parts else []
        if part is not None and len(tables) > 1:  # it is being opened again, or was when killed
            named = {file.path for file in read_part_record(store, part).files}
            tables = [file for file in tables if file.path in named]
        yield from tables


def _table_file(store: Store, file: StoredFile) -> TableFile:
    suffix = posixpath.splitext(file.path)[1].lower()
    url = store.join(file.path)
    if suffix not in _FORMATS:
        raise SchemaError(f"{url}: found a file named *{suffix}; {_EXPECTED}")
    return TableFile(url=url, format=_FORMATS[suffix], num_bytes=file.num_bytes)


def _split_glob(url: str) -> tuple[str, str]:
    """The folder before the first component with a wildcard, and the pattern below it."""
    scheme, separator, rest = url.rpartition("://")
    parts = rest.split("/")
    first = next(n for n, part in enumerate(parts) if _MAGIC.search(part))
    return scheme + separator + ("/".join(parts[:first]) or "/"), "/".join(parts[first:])
