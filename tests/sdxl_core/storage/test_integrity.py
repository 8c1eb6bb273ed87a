"""Every way in which an output can be broken is found, and named."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sdxl_core.contract.errors import SchemaError
from sdxl_core.storage.integrity import NUM_READ_THREADS, check_dataset
from sdxl_core.storage.stores import Store, open_store
from tests.jobs.outputs import ROWS_PER_PART, write_output, write_part


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_output(tmp_path)


def test_whole_output_is_complete_and_without_problems(store: Store) -> None:
    check = check_dataset(store)
    assert check.problems == ()
    assert check.complete
    assert (check.num_parts, check.num_rows, check.num_files) == (3, 12, 15)
    assert check.num_by_status == {"ok": 12}


def test_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"no _schema\.json"):
        check_dataset(open_store(tmp_path / "elsewhere"))


def test_part_that_is_not_in_yet_makes_it_incomplete_and_is_no_problem(store: Store) -> None:
    store.delete("_SUMMARY.json")
    store.delete("_parts/00001.json")
    check = check_dataset(store)
    assert not check.complete
    assert check.problems == ()
    assert (check.num_rows, check.num_rows_expected) == (8, 12)


def test_summary_over_a_missing_part_is_a_problem(store: Store) -> None:
    store.delete("_parts/00001.json")
    assert check_dataset(store).problems == ("there is a summary, but 2 of 3 parts are in",)


def test_missing_file_is_named(store: Store) -> None:
    store.delete("images/part-00001/5.png")
    (problem,) = check_dataset(store).problems
    assert "images/part-00001/5.png" in problem


def test_cut_file_is_found_by_its_size_alone(store: Store) -> None:
    store.write_bytes("images/part-00002/9.png", b"image")
    (problem,) = check_dataset(store, checksums=False).problems
    assert "images/part-00002/9.png has 5 bytes" in problem


def test_changed_bit_is_found_by_checksum_alone(store: Store) -> None:
    store.write_bytes("images/part-00002/9.png", b"image of 8")
    assert check_dataset(store, checksums=False).problems == ()
    (problem,) = check_dataset(store).problems
    assert "images/part-00002/9.png has other content" in problem


def test_damaged_record_is_named_and_the_other_parts_are_checked(store: Store) -> None:
    store.write_bytes("_parts/00000.json", b"{")
    store.delete("images/part-00001/5.png")
    record, file = check_dataset(store).problems
    assert "_parts/00000.json" in record
    assert "5.png" in file


def test_row_that_is_there_twice_is_found_across_parts(store: Store) -> None:
    write_part(store, 2, [8, 9, 10, 3])
    (problem,) = check_dataset(store).problems
    assert problem == "1 input rows are there more than once, in parts [0, 2]"


def test_row_and_part_outside_the_plan_are_found(store: Store) -> None:
    write_part(store, 3, [12])
    surplus, row = sorted(check_dataset(store).problems, reverse=True)
    assert surplus == "part 3: the plan has 3 parts only"
    assert row.startswith("1 input rows are not in the plan, the first 12")


def test_table_with_fewer_rows_than_its_record_is_found(store: Store) -> None:
    path = "_parts/00000.json"
    text = store.read_bytes(path).decode()
    wrong = text.replace(f'"num_rows": {ROWS_PER_PART}', '"num_rows": 5')
    store.write_bytes(path, wrong.replace('"ok": 4', '"ok": 5').encode())
    assert check_dataset(store).problems == ("part 0: 4 rows, its record says 5",)


def test_files_that_no_record_names_are_orphans_and_no_problem(store: Store) -> None:
    orphans = (
        "images/part-00001/late.png",
        "images/part-00077/0.png",
        "shards/part-00001.tar",
        "table/part-00001.0123abcd.parquet",
    )
    for path in reversed(orphans):
        store.write_bytes(path, b"x")
    for path in ("gallery.html", "_events.jsonl", "_gallery/rows-0.js", "notes/of a person.txt"):
        store.write_bytes(path, b"x")
    check = check_dataset(store)
    assert check.orphans == orphans
    assert check.problems == ()
    assert check.complete


def test_files_of_a_part_without_its_record_are_orphans(store: Store) -> None:
    store.delete("_parts/00001.json")
    rows = range(ROWS_PER_PART, 2 * ROWS_PER_PART)
    expected = {"table/part-00001.parquet", *(f"images/part-00001/{row}.png" for row in rows)}
    assert set(check_dataset(store).orphans) == expected


def test_folders_that_only_other_datasets_have_are_searched_too(tmp_path: Path) -> None:
    store = write_output(tmp_path)
    for part in range(3):
        store.write_bytes(f"bucket=8x8/part-{part}.bin", b"x")
    assert check_dataset(store).orphans == ()  # no record says that files of parts lie there
    text = store.read_bytes("_parts/00000.json").decode()
    store.write_bytes(
        "_parts/00000.json", text.replace("images/part-00000/0", "bucket=8x8/0").encode()
    )
    store.write_bytes("bucket=8x8/0.png", b"image of 0")
    check = check_dataset(store)
    assert check.problems == ()
    assert set(check.orphans) == {
        "images/part-00000/0.png",
        *(f"bucket=8x8/part-{part}.bin" for part in range(3)),
    }


class SlowStore:
    """A real store whose every question takes a while; counts how many are open at a time."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self.num_open = self.most_open = 0

    def size(self, path: str) -> int:
        with self._lock:
            self.num_open += 1
            self.most_open = max(self.most_open, self.num_open)
        time.sleep(0.02)
        with self._lock:
            self.num_open -= 1
        return self._store.size(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.mark.parametrize(("num_parts", "rows_per_part"), [(1, 40), (40, 1)])
def test_files_are_checked_many_at_a_time_but_not_all(
    num_parts: int, rows_per_part: int, tmp_path: Path
) -> None:
    store = write_output(tmp_path)
    for part in range(3):
        store.delete(f"_parts/{part:05d}.json")
    for part in range(num_parts):
        first = part * rows_per_part
        write_part(store, part, list(range(first, first + rows_per_part)))
    slow: Any = SlowStore(store)
    check = check_dataset(slow)
    assert (check.num_parts, check.num_rows) == (num_parts, 40)
    assert 4 <= slow.most_open <= NUM_READ_THREADS
