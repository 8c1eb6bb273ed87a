"""Checkpoints are there whole or not at all."""

import threading
from pathlib import Path

import pytest
import torch

from sdxl_core.contract.errors import ConfigError, StoreError
from sdxl_core.storage.stores import Store, open_store
from sdxl_core.training.checkpoint_store import (
    COMMIT_FILE,
    CheckpointRecord,
    commit,
    committed_steps,
    delete_old,
    fetch_states,
    find_checkpoint,
    open_checkpoint,
    read_record,
    step_folder,
    wait_for_states,
    write_state,
)
from sdxl_core.training.pieces import Piece, write_pieces

SHAPES: dict[str, tuple[int, ...]] = {"w": (4,)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "run")


def write_checkpoint(
    store: Store, step: int, tmp_path: Path, *, world_size: int = 2, token: str = "t"
) -> CheckpointRecord:
    for rank in range(world_size):
        share = 4 // world_size
        values = torch.arange(4.0)[rank * share : (rank + 1) * share] + step
        path = tmp_path / f"state-{step}-{rank}"
        write_pieces(path, [Piece(name="w", start=rank * share, tensors={"master": values})])
        write_state(store, step, path, rank=rank, world_size=world_size, token=token)
    record = CheckpointRecord(
        step=step,
        fingerprint="f",
        world_size=world_size,
        num_updates=step,
        num_skipped=0,
        num_skipped_in_row=0,
        num_samples=8 * step,
        shapes=SHAPES,
        files=wait_for_states(store, step, world_size=world_size, token=token, timeout_s=5),
        model={"path": "tiny"},
    )
    commit(store, record)
    return record


def test_a_checkpoint_exists_once_its_record_is_there(store: Store, tmp_path: Path) -> None:
    record = write_checkpoint(store, 20, tmp_path)
    assert committed_steps(store) == [20]
    assert read_record(store, 20) == record
    assert find_checkpoint(store, "f") == record
    # One that was begun later and is not committed is not there.
    store.write_bytes(f"{step_folder(30)}/state-00000-of-00002.x.safetensors", b"half")
    assert find_checkpoint(store, "f") == record
    store.delete(f"{step_folder(20)}/{COMMIT_FILE}")
    assert find_checkpoint(store, "f") is None


def test_another_fingerprint_is_refused(store: Store, tmp_path: Path) -> None:
    write_checkpoint(store, 20, tmp_path)
    with pytest.raises(ConfigError, match="the fingerprint f, this one has g"):
        find_checkpoint(store, "g")


def test_a_damaged_file_is_found_before_it_is_loaded(store: Store, tmp_path: Path) -> None:
    record = write_checkpoint(store, 20, tmp_path)
    assert len(fetch_states(store, record, tmp_path / "whole")) == 2
    path = record.files[1].path
    data = bytearray(store.read_bytes(path))
    data[-1] ^= 1
    store.write_bytes(path, bytes(data))
    with pytest.raises(StoreError, match="that was committed"):
        fetch_states(store, record, tmp_path / "damaged")


def test_old_checkpoints_go_and_what_was_never_committed_with_them(
    store: Store, tmp_path: Path
) -> None:
    for step in (10, 20, 30):
        write_checkpoint(store, step, tmp_path)
    store.write_bytes(f"{step_folder(15)}/state-00000-of-00002.x.safetensors", b"half")
    store.write_bytes(f"{step_folder(40)}/state-00000-of-00002.x.safetensors", b"in flight")
    assert delete_old(store, keep=2) == [10, 15]
    assert committed_steps(store) == [20, 30]
    left = {file.path.split("/")[1] for file in store.list("checkpoints")}
    assert left == {"step-00000020", "step-00000030", "step-00000040"}


def test_the_first_worker_waits_for_the_others(store: Store, tmp_path: Path) -> None:
    threading.Timer(0.3, write_checkpoint, (store, 5, tmp_path)).start()
    entries = wait_for_states(store, 5, world_size=2, token="t", timeout_s=20, poll_s=0.05)
    assert [Path(entry.path).name for entry in entries] == [
        "state-00000-of-00002.t.safetensors",
        "state-00001-of-00002.t.safetensors",
    ]
    with pytest.raises(StoreError, match="did not appear within 0 s"):
        wait_for_states(store, 5, world_size=2, token="of another start", timeout_s=0)


def test_a_user_may_name_the_run_or_one_checkpoint(store: Store, tmp_path: Path) -> None:
    for step in (10, 20):
        write_checkpoint(store, step, tmp_path)
    for url, step in (
        (store.url, 20),
        (f"{store.url}/", 20),
        (f"{store.url}/checkpoints", 20),
        (f"{store.url}/checkpoints/step-00000010", 10),
    ):
        run, record = open_checkpoint(url)
        assert (run, record.step) == (store.url, step)
    with pytest.raises(ConfigError, match="there is no whole checkpoint"):
        open_checkpoint(f"{store.url}/checkpoints/step-00000015")
