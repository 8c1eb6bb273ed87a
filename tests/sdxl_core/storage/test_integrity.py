"""Every way in which an output can be broken is found, and named."""

from pathlib import Path

import pytest

from sdxl_core.contract.errors import SchemaError
from sdxl_core.storage.integrity import check_dataset
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
