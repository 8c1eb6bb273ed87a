"""Training checkpoints in a store: which there are, and how one comes to be there whole.

    checkpoints/step-00000200/state-00000-of-00002.TOKEN.safetensors   one of each worker
    checkpoints/step-00000200/state-00000-of-00002.TOKEN.json          its size and hash
    checkpoints/step-00000200/_COMMIT.json                             written last, by one worker

A checkpoint without its commit record does not exist. The token is drawn anew by every start of a
run, so what a killed run left half-written is never taken for a file of a later one.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pydantic

from sdxl_core.contract.errors import ConfigError, StoreError
from sdxl_core.storage.local_store import LocalStore
from sdxl_core.storage.parts import FileEntry
from sdxl_core.storage.stores import Store, open_store

CHECKPOINTS_FOLDER = "checkpoints"
COMMIT_FILE = "_COMMIT.json"
COMMIT_VERSION = 1

_COMMIT_PATH = re.compile(rf"{CHECKPOINTS_FOLDER}/step-([0-9]{{8,}})/{COMMIT_FILE}")
_NUM_THREADS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What a commit record says.

    Args:
        step: global batches done: the whole state of the data.
        fingerprint: of what is trained; a run with another one does not resume from here.
        world_size: workers that wrote it.
        num_updates: optimizer steps that were not skipped.
        num_skipped: steps whose gradient was not finite.
        num_skipped_in_row: of these, the last ones without an update between them.
        num_samples: samples seen.
        shapes: of every trained parameter, by name.
        files: those of the workers, in order of rank.
        model: what the other networks are: ``path``, ``digest``, ``prediction_type``, ...
        time: when, seconds since 1970.
    """

    step: int
    fingerprint: str
    world_size: int
    num_updates: int
    num_skipped: int
    num_skipped_in_row: int
    num_samples: int
    shapes: dict[str, tuple[int, ...]]
    files: tuple[FileEntry, ...]
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    time: float = 0.0
    version: int = COMMIT_VERSION


def step_folder(step: int) -> str:
    """Where the checkpoint after ``step`` global batches lies."""
    return f"{CHECKPOINTS_FOLDER}/step-{step:08d}"


def committed_steps(store: Store) -> list[int]:
    """The steps of all checkpoints that are whole, rising."""
    found = (_COMMIT_PATH.fullmatch(file.path) for file in store.iter_files(CHECKPOINTS_FOLDER))
    return sorted(int(match[1]) for match in found if match)


def read_record(store: Store, step: int) -> CheckpointRecord:
    """The commit record of a checkpoint.

    Raises:
        StoreError: it is not there or cannot be read.
    """
    path = f"{step_folder(step)}/{COMMIT_FILE}"
    data = store.read_bytes(path)
    try:
        return pydantic.TypeAdapter(CheckpointRecord).validate_json(data)
    except pydantic.ValidationError as error:
        raise StoreError(
            f"{store.join(path)} is no commit record of a checkpoint: {error}", retryable=False
        ) from error


def write_state(
    store: Store, step: int, local_path: Path, *, rank: int, world_size: int, token: str
) -> FileEntry:
    """Uploads one worker's file, then the small file that says that it is there.

    Raises:
        StoreError: it cannot be written.
    """
    path = _state_path(step, rank, world_size, token)
    entry = FileEntry(path=path, bytes=local_path.stat().st_size, sha256=sha256_of(local_path))
    store.upload(local_path, path)
    store.write_bytes(_note_path(path), json.dumps(dataclasses.asdict(entry)).encode())
    return entry


def wait_for_states(
    store: Store,
    step: int,
    *,
    world_size: int,
    token: str,
    timeout_s: float,
    poll_s: float = 0.2,
) -> tuple[FileEntry, ...]:
    """Waits until the files of all workers are there.

    Raises:
        StoreError: they are not after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    entries: list[FileEntry] = []
    for rank in range(world_size):
        note = _note_path(_state_path(step, rank, world_size, token))
        while not store.exists(note):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{store.join(note)} did not appear within {timeout_s:.0f} s; the checkpoint "
                    "is not committed, the one before it stays",
                    retryable=False,
                )
            time.sleep(poll_s)
        entries.append(FileEntry(**json.loads(store.read_bytes(note))))
    return tuple(entries)


def commit(store: Store, record: CheckpointRecord) -> None:
    """Makes a checkpoint exist."""
    path = f"{step_folder(record.step)}/{COMMIT_FILE}"
    store.write_bytes(path, json.dumps(dataclasses.asdict(record)).encode())


def delete_old(store: Store, *, keep: int) -> list[int]:
    """Deletes all but the newest ``keep`` checkpoints, and what has no commit record before them.

    Args:
        store: of the run.
        keep: how many stay, >= 1.

    Returns:
        The steps of those deleted.
    """
    kept = committed_steps(store)[-keep:]
    if not kept:
        return []
    deleted: set[int] = set()
    for file in sorted(store.list(CHECKPOINTS_FOLDER), key=lambda f: not f.path.endswith("json")):
        match = re.match(rf"{CHECKPOINTS_FOLDER}/step-([0-9]{{8,}})/", file.path)
        # The commit record goes first: what is left without it is no checkpoint.
        if match and int(match[1]) < kept[0]:
            store.delete(file.path)
            deleted.add(int(match[1]))
    return sorted(deleted)


def fetch_states(
    store: Store, record: CheckpointRecord, folder: Path, *, verify: bool = True
) -> list[Path]:
    """The files of a checkpoint as local ones.

    Args:
        store: of the run; files of a local one are taken where they are.
        record: of the checkpoint.
        folder: where others are copied to, unless they are there already.
        verify: check the hash of each; once on every machine is enough.

    Raises:
        StoreError: a file is missing, or is not the one that was committed.
    """

    def fetch(entry: FileEntry) -> Path:
        if isinstance(store, LocalStore):
            local = Path(store.join(entry.path))
        else:
            local = folder / Path(entry.path).name
            if not (local.exists() and local.stat().st_size == entry.bytes):
                store.download(entry.path, local)
        if not verify:
            return local
        if store.size(entry.path) != entry.bytes or sha256_of(local) != entry.sha256:
            raise StoreError(
                f"{store.join(entry.path)} is not the file of {entry.bytes} bytes with the SHA-256 "
                f"{entry.sha256} that was committed. Delete {step_folder(record.step)} to go on "
                "from the checkpoint before it",
                retryable=False,
            )
        return local

    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(fetch, record.files))


def find_checkpoint(store: Store, fingerprint: str) -> CheckpointRecord | None:
    """The newest checkpoint of a run; None if there is none.

    Raises:
        ConfigError: it was made with other settings.
    """
    steps = committed_steps(store)
    if not steps:
        return None
    record = read_record(store, steps[-1])
    if record.fingerprint != fingerprint:
        raise ConfigError(
            f"{store.join(step_folder(record.step))} was made by a run with the fingerprint "
            f"{record.fingerprint}, this one has {fingerprint}: other settings, samples or model. "
            "Use the same, or another OUT, or begin anew with --resume never in an empty OUT"
        )
    return record


def open_checkpoint(url: str) -> tuple[str, CheckpointRecord]:
    """The checkpoint that a user names: a run's output for the newest, or one ``step-...`` folder.

    Returns:
        The URL of the run's output, and the commit record.

    Raises:
        ConfigError: there is no whole checkpoint.
    """
    run, step = url.rstrip("/"), None
    if match := re.search(rf"/?{CHECKPOINTS_FOLDER}(/step-([0-9]{{8,}}))?$", run):
        run, step = run[: match.start()] or ".", match[2]
    store = open_store(run)
    steps = committed_steps(store)
    if not steps or (step is not None and int(step) not in steps):
        raise ConfigError(
            f"{url}: there is no whole checkpoint; expected the output of `sdxl train`, or one of "
            f"{', '.join(step_folder(number) for number in steps) or 'its checkpoints'} in it"
        )
    return store.url, read_record(store, steps[-1] if step is None else int(step))


def sha256_of(path: Path) -> str:
    """Hash of a local file, lower-case hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_path(step: int, rank: int, world_size: int, token: str) -> str:
    return f"{step_folder(step)}/state-{rank:05d}-of-{world_size:05d}.{token}.safetensors"


def _note_path(path: str) -> str:
    return path.removesuffix(".safetensors") + ".json"
