"""The commit protocol on both kinds of store."""

import dataclasses
import json
import logging
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import StoreError
from sdxl_core.storage.parts import (
    DatasetInfo,
    FileEntry,
    PartRecord,
    Tally,
    commit_part,
    committed_parts,
    read_dataset_info,
    read_part_record,
    read_part_records,
    read_run_toml,
    read_summary,
    record_path,
    tally_records,
    write_run_files,
    write_summary,
)
from sdxl_core.storage.stores import Store, open_store


def make_record(part: int, *, num_ok: int = 3, num_failed: int = 1) -> PartRecord:
    return PartRecord(
        part=part,
        num_rows=num_ok + num_failed,
        num_by_status={"ok": num_ok, "failed": num_failed},
        num_by_reason={"invalid_size": num_failed},
        files=(FileEntry(path=f"table/part-{part:05d}.parquet", bytes=10, sha256="ab" * 32),),
        seconds=1.5,
        extra={"attempt": 2, "host": "größe"},
    )


def test_committed_part_is_read_back_as_it_was(store: Store) -> None:
    commit_part(store, make_record(12))

    assert committed_parts(store) == {12}
    assert read_part_record(store, 12) == make_record(12)


def test_nothing_is_committed_in_an_empty_or_absent_place(store: Store) -> None:
    store.write_bytes("table/part-00003.parquet", b"files without a record do not count")

    assert committed_parts(store) == set()
    assert list(read_part_records(store)) == []
    assert read_run_toml(store) is None
    assert read_summary(store) is None
    assert read_dataset_info(store) is None


def test_committing_again_with_equal_content_changes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    commit_part(store, make_record(0))
    before = store.read_bytes(record_path(0))

    commit_part(store, dataclasses.replace(make_record(0), seconds=99.0, extra={"attempt": 3}))

    assert store.read_bytes(record_path(0)) == before


def test_committing_again_with_other_content_takes_the_later_and_tells(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path)
    commit_part(store, make_record(0))

    with caplog.at_level(logging.WARNING):
        commit_part(store, make_record(0, num_ok=2, num_failed=2))

    assert read_part_record(store, 0).num_by_status == {"ok": 2, "failed": 2}
    assert "other content" in caplog.text


def test_many_writers_of_one_part_end_in_one_whole_record(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writers = [threading.Thread(target=commit_part, args=(store, make_record(7))) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert read_part_record(store, 7) == make_record(7)
    assert [f.path for f in store.list()] == ["_parts/00007.json"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"part": 1, "num_ro',
        b"[]",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        json.dumps({"record_version": 2, "part": 1}).encode(),
        json.dumps({"record_version": 1, "part": 1}).encode(),
    ],
    ids=["empty", "half", "list", "not-utf8", "null", "deep", "newer", "incomplete"],
)
def test_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, data: bytes) -> None:
    store = open_store(tmp_path)
    store.write_bytes(record_path(1), data)

    with pytest.raises(StoreError, match="delete it and run") as caught:
        read_part_record(store, 1)

    assert str(tmp_path / "_parts" / "00001.json") in str(caught.value)
    assert not caught.value.retryable
    commit_part(store, make_record(1))  # and it can be replaced
    assert read_part_record(store, 1) == make_record(1)


def test_record_of_another_part_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    commit_part(store, make_record(1))
    store.write_bytes(record_path(2), store.read_bytes(record_path(1)))

    with pytest.raises(StoreError, match="about part 1"):
        read_part_record(store, 2)


def test_record_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    with pytest.raises(StoreError, match="5 rows, but 4"):
        commit_part(store, dataclasses.replace(make_record(0), num_rows=5))
    escaping = FileEntry(path="../../etc/passwd", bytes=1, sha256="")
    with pytest.raises(StoreError, match="not a path below"):
        commit_part(store, dataclasses.replace(make_record(0), files=(escaping,)))
    assert committed_parts(store) == set()


def test_run_files_round_trip(store: Store) -> None:
    info = DatasetInfo(name="images", version=1, num_parts=10, num_rows=640)

    write_run_files(store, 'prompts = "größe.csv"\n', info)
    write_summary(store, {"num_rows": 640})

    assert read_run_toml(store) == 'prompts = "größe.csv"\n'
    assert read_dataset_info(store) == info
    assert read_summary(store) == {"num_rows": 640}


def test_damaged_run_files_are_errors_that_name_the_file(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_bytes("_schema.json", b"{")
    store.write_bytes("_SUMMARY.json", b"{")

    with pytest.raises(StoreError, match=r"_schema\.json"):
        read_dataset_info(store)
    with pytest.raises(StoreError, match=r"_SUMMARY\.json"):
        read_summary(store)


def test_stray_files_among_the_records_are_not_parts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for name in ("00001.json.bak", "1.json", "abc.json", "00001/00002.json", ".tmp-1-2"):
        store.write_bytes(f"_parts/{name}", b"{}")
    commit_part(store, make_record(100_000))

    assert committed_parts(store) == {100_000}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=20))
def test_tally_is_the_sum_of_the_records(counts: list[tuple[int, int]]) -> None:
    tally = tally_records(
        make_record(part, num_ok=ok, num_failed=failed) for part, (ok, failed) in enumerate(counts)
    )

    num_ok, num_failed = sum(ok for ok, _ in counts), sum(failed for _, failed in counts)
    empty = not counts
    assert tally == Tally(
        num_parts=len(counts),
        num_rows=num_ok + num_failed,
        num_by_status={} if empty else {"ok": num_ok, "failed": num_failed},
        num_by_reason={} if empty else {"invalid_size": num_failed},
        num_files=len(counts),
        num_bytes=10 * len(counts),
        seconds=1.5 * len(counts),
    )


def test_thousands_of_records_are_listed_and_read_in_seconds(tmp_path: Path) -> None:
    folder = tmp_path / "_parts"
    folder.mkdir()
    num_parts = 4000  # a quarter of a million rows
    for part in range(num_parts):  # written directly: fsync is not what this measures
        text = {"record_version": 1, **dataclasses.asdict(make_record(part))}
        (folder / f"{part:05d}.json").write_text(json.dumps(text))
    store = open_store(tmp_path)

    started_s = time.monotonic()
    parts = committed_parts(store)
    listed_s = time.monotonic()
    tally = tally_records(read_part_records(store))
    read_s = time.monotonic()

    assert len(parts) == tally.num_parts == num_parts
    assert listed_s - started_s < 2
    assert read_s - listed_s < 20
