"""Which files a path, a folder or a pattern stands for."""

from pathlib import Path

import pytest

from sdxl_core.contract.errors import ConfigError, SchemaError
from sdxl_core.storage.parts import DatasetInfo, PartRecord, commit_part, write_run_files
from sdxl_core.storage.stores import Store, open_store
from sdxl_core.storage.tables import find_table_files


@pytest.fixture
def filled(store: Store) -> Store:
    for name in ("b.csv", "a/z.csv", "a/y.CSV", "a/readme.txt", "_old/c.csv", ".hidden.csv"):
        store.write_bytes(name, b"prompt\n")
    return store


def names(store: Store, pattern: str = "") -> list[str]:
    url = f"{store.url}/{pattern}" if pattern else store.url
    return [file.url.removeprefix(store.url + "/") for file in find_table_files(url)]


def test_folder_stands_for_its_tables_sorted_by_path(filled: Store) -> None:
    assert names(filled) == ["a/y.CSV", "a/z.csv", "b.csv"]
    assert names(filled, "a/") == ["a/y.CSV", "a/z.csv"]


def test_one_file_stands_for_itself(filled: Store) -> None:
    assert names(filled, "a/z.csv") == ["a/z.csv"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", [".hidden.csv", "b.csv"]),
        ("**/*.csv", [".hidden.csv", "_old/c.csv", "a/z.csv", "b.csv"]),
        ("a/?.[cC]*", ["a/y.CSV", "a/z.csv"]),
        ("*/z.csv", ["a/z.csv"]),
    ],
)
def test_pattern_stands_for_what_it_matches(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    store = open_store(tmp_path)
    for name in ("b.csv", "a/z.csv", "a/y.CSV", "a/readme.txt", "_old/c.csv", ".hidden.csv"):
        store.write_bytes(name, b"prompt\n")

    assert names(store, pattern) == expected


def test_existing_file_with_brackets_in_its_name_is_taken_literally(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_bytes("p[1].csv", b"prompt\n")

    assert names(store, "p[1].csv") == ["p[1].csv"]


def test_relative_paths_and_patterns_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.csv").write_bytes(b"prompt\n")
    monkeypatch.chdir(tmp_path)

    for url in ("p.csv", "*.csv", ".", "./p.csv"):
        assert [file.url for file in find_table_files(url)] == [str(tmp_path / "p.csv")]


def test_nothing_there_is_refused(filled: Store) -> None:
    for pattern in ("nowhere", "nowhere.csv", "*.parquet"):
        with pytest.raises(ConfigError, match="no table found"):
            names(filled, pattern)


def test_two_formats_side_by_side_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write_bytes("p.csv", b"prompt\n")
    store.write_bytes("p.parquet", b"PAR1")

    with pytest.raises(SchemaError, match="csv and parquet side by side"):
        names(store)
    assert names(store, "*.csv") == ["p.csv"]


def test_output_of_a_run_stands_for_its_committed_rows(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_run_files(store, "", DatasetInfo(name="images", version=1))
    for part in range(3):
        store.write_bytes(f"table/part-{part:05d}.parquet", b"PAR1")
    for part in (0, 2):
        record = PartRecord(part=part, num_rows=0, num_by_status={}, num_by_reason={}, files=())
        commit_part(store, record)

    assert names(store) == ["table/part-00000.parquet", "table/part-00002.parquet"]
