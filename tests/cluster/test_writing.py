"""What a part's commit leaves in the store; above all when it is made again for its failed rows."""

import contextlib
import dataclasses
import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.writing import rows_made_before
from sdxl_core.storage.integrity import check_dataset
from sdxl_core.storage.part_files import delete_leftovers
from sdxl_core.storage.parts import read_part_record
from sdxl_core.storage.sinks import OutputFormat, read_part_images, read_part_table
from sdxl_core.storage.stores import Store, open_store
from sdxl_core.storage.tables import find_table_files
from tests.cluster.committed_parts import (
    FAILED_FIRST,
    NUM_GOOD,
    begun,
    commit,
    image,
    write_prompts,
)

FORMATS: tuple[OutputFormat, ...] = ("files", "parquet", "webdataset")


class Killed(BaseException):
    """Stands for the end of the process: no handler of the product catches it."""


class MortalStore:
    """A real store whose user dies before change number ``num_changes`` of files."""

    def __init__(self, store: Store, num_changes: int) -> None:
        self._store, self._left, self._lock = store, num_changes, threading.Lock()

    def _live_on(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left < 0:
                raise Killed

    def write_bytes(self, path: str, data: bytes) -> None:
        self._live_on()
        self._store.write_bytes(path, data)

    def delete(self, path: str) -> None:
        self._live_on()
        self._store.delete(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_prompts(tmp_path_factory.mktemp("prompts"))


def content(store: Store) -> tuple[list[dict[str, Any]], dict[int, bytes]]:
    table = read_part_table(store, read_part_record(store, 0))
    return table.to_pylist(), read_part_images(store, table)


def files_of(out: Path) -> dict[str, tuple[int, bytes]]:
    paths = [path for path in out.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(out)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths
    }


@pytest.mark.parametrize("output_format", FORMATS)
def test_part_opened_again_ends_as_one_that_never_failed(
    prompts: str, output_format: OutputFormat, tmp_path: Path
) -> None:
    work, store = begun(prompts, tmp_path / "out", output_format)
    assert commit(work, store) == len(FAILED_FIRST) + 1
    other = dataclasses.replace(work, out=str(tmp_path / "other"))
    commit(other, open_store(other.out))

    (rows, images), (rows_never_failed, _) = content(store), content(open_store(other.out))
    assert images == {row: image(row) for row in range(NUM_GOOD)}
    where = {"path"}
    assert [{k: v for k, v in row.items() if k not in where} for row in rows] == [
        {k: v for k, v in row.items() if k not in where} for row in rows_never_failed
    ]
    record = read_part_record(store, 0)
    assert record.num_by_status == {"ok": NUM_GOOD, "failed": 1}
    assert check_dataset(store).problems == ()


@pytest.mark.parametrize("output_format", FORMATS)
def test_part_opened_again_leaves_rows_that_are_fine_and_their_files_alone(
    prompts: str, output_format: OutputFormat, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work, store = begun(prompts, out, output_format)
    rows_before, _ = content(store)
    files_before = files_of(out)
    assert rows_made_before(work, store, 0) == {0, 2}
    commit(work, store)
    rows, _ = content(store)
    moved = {"path"} if output_format == "parquet" else set()
    for row in (0, 2):
        assert {k: v for k, v in rows[row].items() if k not in moved} == {
            k: v for k, v in rows_before[row].items() if k not in moved
        }
    files = files_of(out)
    gone = set(files_before) - set(files)
    assert gone == {"table/part-00000.parquet"}
    changed = {path for path in set(files_before) & set(files) if files[path] != files_before[path]}
    assert changed == {"_parts/00000.json"}


@pytest.mark.parametrize("output_format", FORMATS)
def test_part_opened_again_survives_death_at_every_instant(
    prompts: str, output_format: OutputFormat, tmp_path: Path
) -> None:
    whole, num_deaths = set(), 0
    for num_changes in itertools.count():
        out = tmp_path / str(num_changes)
        work, store = begun(prompts, out, output_format)
        fine = {0: image(0), 2: image(2)}
        with contextlib.suppress(Killed):
            commit(work, MortalStore(store, num_changes))
            whole = set(files_of(out))
            break
        num_deaths += 1
        assert check_dataset(store).problems == ()
        rows, images = content(store)
        assert len(rows) == NUM_GOOD + 1
        assert images in (fine, {row: image(row) for row in range(NUM_GOOD)})
        assert len(find_table_files(str(out))) == 1

        commit(work, store)
        delete_leftovers(store, [0])
        assert content(store)[1] == {row: image(row) for row in range(NUM_GOOD)}
        assert check_dataset(store).problems == ()
    assert num_deaths == {"files": 6, "parquet": 3, "webdataset": 4}[output_format]
    assert whole
    for number in range(num_deaths):
        assert set(files_of(tmp_path / str(number))) == whole


def test_part_that_fails_again_in_the_same_way_is_not_touched(prompts: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work, store = begun(prompts, out, "files")
    before = files_of(out)
    assert commit(work, store, failed=FAILED_FIRST) == len(FAILED_FIRST) + 1
    assert files_of(out) == before
    commit(work, store, failed=FAILED_FIRST, detail="broke in another way")
    assert {row["detail"] for row in content(store)[0]} >= {"broke in another way"}
    assert files_of(out) != before


def test_part_opened_a_second_time_keeps_what_the_first_time_made(
    prompts: str, tmp_path: Path
) -> None:
    for output_format in FORMATS:
        work, store = begun(prompts, tmp_path / output_format, output_format)
        commit(work, store, failed=(3, 4))
        commit(work, store, failed=(4,))
        commit(work, store)
        assert content(store)[1] == {row: image(row) for row in range(NUM_GOOD)}
        assert check_dataset(store).problems == ()
        tables = [path for path in files_of(tmp_path / output_format) if "table/" in path]
        assert len(tables) == 1


def test_part_whose_worker_died_after_the_commit_is_committed_once(
    prompts: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work, store = begun(prompts, out, "files")
    work = dataclasses.replace(work, retry_failed=False)
    before = files_of(out)
    commit(work, store, failed=FAILED_FIRST)
    assert files_of(out) == before


def test_leftovers_of_parts_that_are_not_committed_are_left_to_whoever_makes_them(
    prompts: str, tmp_path: Path
) -> None:
    _, store = begun(prompts, tmp_path / "out", "files")
    store.write_bytes("table/part-00007.parquet", b"")
    store.write_bytes("table/part-00007.0123abcd.parquet", b"")
    store.write_bytes("table/notes.txt", b"of a person")
    store.write_bytes("images/part-00000/late.png", b"")
    assert delete_leftovers(store, []) == []
    assert delete_leftovers(store, [0, 7]) == ["images/part-00000/late.png"]
