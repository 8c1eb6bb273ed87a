"""The commit protocol: how an output directory tells which of its parts are finished.

Files of every dataset, beside its data::

    _run.toml            the resolved configuration of the job that writes it
    _schema.json         name and version of the schema, number of parts and rows of the plan
    _parts/00012.json    commit record of part 12, written after all of its files
    _SUMMARY.json        written when all parts are in

A part without its record does not exist: whoever makes it overwrites what lies there. Writing the
record is one put of one small file, which is atomic on S3 as on a local path.
"""

import dataclasses
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, cast

import pydantic

from sdxl_core.contract.errors import StoreError
from sdxl_core.storage.store_paths import checked_path
from sdxl_core.storage.stores import Store
from sdxl_core.storage.threads import map_in_order

logger = logging.getLogger(__name__)

RECORD_VERSION = 1
RUN_FILE = "_run.toml"
SCHEMA_FILE = "_schema.json"
SUMMARY_FILE = "_SUMMARY.json"
PARTS_FOLDER = "_parts"

_RECORD_NAME = re.compile(rf"{PARTS_FOLDER}/([0-9]{{5,}})\.json")
_NUM_READ_THREADS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a part: its path in the store, its size, and its hash in lower-case hex."""

    path: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What one finished part holds. ``seconds`` is the time that making it took; >= 0."""

    part: int
    num_rows: int
    num_by_status: dict[str, int]
    num_by_reason: dict[str, int]
    files: tuple[FileEntry, ...]
    seconds: float = 0.0
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def content(self) -> tuple[Any, ...]:
        """What two attempts at one part must agree on: everything but time and ``extra``."""
        return (self.part, self.num_rows, self.num_by_status, self.num_by_reason, self.files)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums over commit records."""

    num_parts: int
    num_rows: int
    num_by_status: dict[str, int]
    num_by_reason: dict[str, int]
    num_files: int
    num_bytes: int
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """``_schema.json``: what the dataset is, and how large it will be when it is complete."""

    name: str
    version: int
    num_parts: int | None = None
    num_rows: int | None = None


_RECORD_ADAPTER: Any = pydantic.TypeAdapter(PartRecord)
_INFO_ADAPTER: Any = pydantic.TypeAdapter(DatasetInfo)


def record_path(part: int) -> str:
    """Where the commit record of ``part`` lies."""
    return f"{PARTS_FOLDER}/{part:05d}.json"


def commit_part(store: Store, record: PartRecord, *, reopened: bool = False) -> None:
    """Makes the part exist. All of its files must be written already.

    Committing a part again is fine: with equal content nothing is written. With other content the
    new record wins, because its writer has just overwritten the files that the old one describes;
    or has written others beside them, if the part was ``reopened``.

    Raises:
        StoreError: if the record cannot be written, or contradicts itself.
    """
    path = record_path(record.part)
    _check_record(record, url=store.join(path))
    if store.exists(path):
        try:
            if read_part_record(store, record.part).content == record.content:
                return
            if not reopened:
                logger.warning("%s: committed before with other content", store.join(path))
        except StoreError as error:
            logger.warning("replacing an unusable commit record: %s", error)
    text = {"record_version": RECORD_VERSION, **dataclasses.asdict(record)}
    store.write_bytes(path, _json_bytes(text))


def committed_parts(store: Store) -> set[int]:
    """The numbers of all finished parts, from one listing; records are not opened."""
    matches = (_RECORD_NAME.fullmatch(file.path) for file in store.iter_files(PARTS_FOLDER))
    return {int(match[1]) for match in matches if match}


def read_part_record(store: Store, part: int) -> PartRecord:
    """The commit record of ``part``.

    Raises:
        StoreError: if there is none, if it is damaged, or if a newer version wrote it. The message
            names the file.
    """
    path = record_path(part)
    url = store.join(path)
    data = store.read_bytes(path)
    try:
        table = json.loads(data)
        version = table.pop("record_version", None) if isinstance(table, dict) else None
        if version == RECORD_VERSION:
            record = cast(PartRecord, _RECORD_ADAPTER.validate_json(json.dumps(table), strict=True))
    except (
        ValueError,
        RecursionError,
    ) as error:  # also UnicodeDecodeError, JSON and pydantic errors
        raise _damaged(url, f"{len(data)} bytes, {_first_line(error)}") from error
    if version != RECORD_VERSION:
        raise _damaged(url, f"record_version {version!r}, expected {RECORD_VERSION}")
    if record.part != part:
        raise _damaged(url, f"it is about part {record.part}")
    _check_record(record, url=url)
    return record


def read_part_records(store: Store, parts: Iterable[int] | None = None) -> Iterator[PartRecord]:
    """The records of ``parts`` (default: all committed ones, ascending), many read at a time."""
    chosen = sorted(committed_parts(store)) if parts is None else parts
    return map_in_order(
        lambda part: read_part_record(store, part), chosen, num_threads=_NUM_READ_THREADS
    )


def tally_records(records: Iterable[PartRecord]) -> Tally:
    """Counts over many records, in one pass; for summaries and progress after a resume."""
    num_by_status: Counter[str] = Counter()
    num_by_reason: Counter[str] = Counter()
    num_parts = num_rows = num_files = num_bytes = 0
    seconds = 0.0
    for record in records:
        num_parts += 1
        num_rows += record.num_rows
        num_by_status.update(record.num_by_status)
        num_by_reason.update(record.num_by_reason)
        num_files += len(record.files)
        num_bytes += sum(file.bytes for file in record.files)
        seconds += record.seconds
    return Tally(
        num_parts=num_parts,
        num_rows=num_rows,
        num_by_status=dict(num_by_status),
        num_by_reason=dict(num_by_reason),
        num_files=num_files,
        num_bytes=num_bytes,
        seconds=seconds,
    )


def write_run_files(store: Store, run_toml: str, info: DatasetInfo) -> None:
    """Writes ``_schema.json`` and then ``_run.toml``, before the first part of a new run."""
    store.write_bytes(SCHEMA_FILE, _json_bytes(dataclasses.asdict(info)))
    store.write_bytes(RUN_FILE, run_toml.encode())


def read_run_toml(store: Store) -> str | None:
    """The resolved configuration of the run that writes here, or None if none has begun."""
    return store.read_bytes(RUN_FILE).decode() if store.exists(RUN_FILE) else None


def read_dataset_info(store: Store) -> DatasetInfo | None:
    """What ``_schema.json`` says, or None if there is none.

    Raises:
        StoreError: if it is damaged.
    """
    if not store.exists(SCHEMA_FILE):
        return None
    try:
        data = store.read_bytes(SCHEMA_FILE)
        return cast(DatasetInfo, _INFO_ADAPTER.validate_json(data, strict=True))
    except ValueError as error:
        raise _damaged(store.join(SCHEMA_FILE), _first_line(error)) from error


def write_summary(store: Store, summary: dict[str, Any]) -> None:
    """Writes ``_SUMMARY.json``: all parts are in."""
    store.write_bytes(SUMMARY_FILE, _json_bytes(summary))


def delete_summary(store: Store) -> None:
    """Takes ``_SUMMARY.json`` away, before parts of a complete run are opened again."""
    store.delete(SUMMARY_FILE)


def read_summary(store: Store) -> dict[str, Any] | None:
    """The summary of a complete run, or None.

    Raises:
        StoreError: if the file is there but damaged.
    """
    if not store.exists(SUMMARY_FILE):
        return None
    try:
        return cast(dict[str, Any], json.loads(store.read_bytes(SUMMARY_FILE)))
    except ValueError as error:
        raise _damaged(store.join(SUMMARY_FILE), _first_line(error)) from error


def _check_record(record: PartRecord, *, url: str) -> None:
    num_with_status = sum(record.num_by_status.values())
    if record.part < 0 or num_with_status != record.num_rows:
        raise _damaged(url, f"{record.num_rows} rows, but {num_with_status} with a status")
    for file in record.files:
        checked_path(file.path, url=url)


def _damaged(url: str, found: str) -> StoreError:
    return StoreError(
        f"{url} is not usable: {found}; if no newer version wrote it, delete it and run the same "
        "command again (the part is then made anew)",
        retryable=False,
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode()
