"""Atomic writes on a local path, and what happens when the disk does not play along."""

import multiprocessing
import os
import resource
import signal
import stat
import threading
import time
from pathlib import Path

import pytest

from sdxl_core.contract.errors import StoreError
from sdxl_core.storage.local_store import TEMPORARY_PREFIX, LocalStore, remove_leftovers


def test_reader_beside_a_writer_sees_only_whole_files(tmp_path: Path) -> None:
    store = LocalStore.at(str(tmp_path))
    versions = [bytes([n]) * 200_000 for n in range(4)]
    store.write_bytes("x", versions[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for version in versions:
                store.write_bytes("x", version)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = {store.read_bytes("x") for _ in range(300)}
    finally:
        stop.set()
        writer.join()

    assert seen <= set(versions)


def test_killed_writer_leaves_nothing_that_a_listing_shows(tmp_path: Path) -> None:
    ready = multiprocessing.get_context("fork").Event()

    def write_for_ever() -> None:
        store = LocalStore.at(str(tmp_path))
        store.write_bytes("whole", b"1")
        ready.set()
        while True:
            store.write_bytes("victim", bytes(5_000_000))

    writer = multiprocessing.get_context("fork").Process(target=write_for_ever)
    writer.start()
    ready.wait(10)
    leftovers: list[Path] = []
    deadline_s = time.monotonic() + 20
    while not leftovers and time.monotonic() < deadline_s:
        leftovers = list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()

    store = LocalStore.at(str(tmp_path))
    assert {f.path for f in store.list()} <= {"whole", "victim"}
    assert store.read_bytes("whole") == b"1"
    assert not store.exists("victim") or store.size("victim") == 5_000_000


def test_remove_leftovers_takes_old_temporary_files_only(tmp_path: Path) -> None:
    store = LocalStore.at(str(tmp_path))
    store.write_bytes("images/keep.png", b"1")
    old = tmp_path / "images" / f"{TEMPORARY_PREFIX}1-abc"
    fresh = tmp_path / f"{TEMPORARY_PREFIX}2-def"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))

    assert remove_leftovers(store) == 1

    assert not old.exists()
    assert fresh.exists()
    assert remove_leftovers(store, older_than_s=0) == 1
    assert [f.path for f in store.list()] == ["images/keep.png"]


def test_listing_follows_links_but_in_no_circle_and_leaves_out_what_is_no_file(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    for name in ("a", "x/b", "y/c", "../elsewhere/d"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    links = {"up": root, "x/to_y": root / "y", "y/to_x": root / "x", "out": tmp_path / "elsewhere",
             "self": root / "self", "nothing": root / "gone", "file": root / "a"}  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe")

    assert [file.path for file in LocalStore.at(str(root)).iter_files()] == [
        "a", "file", "out/d", "x/b", "x/to_y/c", "y/c", "y/to_x/b",
    ]  # fmt: skip


def test_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    store = LocalStore.at(str(tmp_path), retries=0)
    store.write_bytes("x", b"old")

    _in_child_with_file_size_limit(1 << 16, lambda: store.write_bytes("x", bytes(1 << 20)))

    assert store.read_bytes("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_file_size_limit_is_a_lasting_failure_that_says_what_to_do(tmp_path: Path) -> None:
    store = LocalStore.at(str(tmp_path))

    error = _in_child_with_file_size_limit(1 << 16, lambda: store.write_bytes("x", bytes(1 << 20)))

    assert "ulimit" in error
    assert error.endswith("retryable=False")


def test_full_disk_is_told_through_a_real_tiny_file_system(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=64k none '{folder}' 2>/dev/null") != 0:
        pytest.skip("mounting a tiny tmpfs needs root")
    try:
        store = LocalStore.at(str(folder))
        store.write_bytes("fits", b"1")
        started_s = time.monotonic()
        with pytest.raises(StoreError, match="disk full") as caught:
            store.write_bytes("too-large", bytes(1 << 20))
        assert time.monotonic() - started_s < 1  # not tried again
        assert not caught.value.retryable
        assert [f.path for f in store.list()] == ["fits"]
        assert os.listdir(folder) == ["fits"]
    finally:
        os.system(f"umount '{folder}'")


def test_files_get_the_permissions_that_the_umask_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        LocalStore.at(str(tmp_path)).write_bytes("x", b"")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o644


def test_file_where_a_folder_is_needed_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    for store, path in [(LocalStore.at(str(tmp_path)), "file/x"), (_below(tmp_path / "file"), "x")]:
        with pytest.raises(StoreError, match="choose another path") as caught:
            store.write_bytes(path, b"")
        assert not caught.value.retryable
    with pytest.raises(StoreError):
        _below(tmp_path / "file").check()


def _below(path: Path) -> LocalStore:
    return LocalStore.at(str(path))


def _in_child_with_file_size_limit(num_bytes: int, write: object) -> str:
    """Runs ``write`` in a forked child that may not write larger files; returns its error."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        try:
            write()  # type: ignore[operator]
            sender.send("no error")
        except StoreError as error:
            sender.send(f"{error} retryable={error.retryable}")

    process = context.Process(target=child)
    process.start()
    process.join(30)
    return str(receiver.recv())
