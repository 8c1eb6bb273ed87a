"""The command ``sdxl fsck``."""

import json
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.fsck import FsckConfig, run
from sdxl_core.contract.errors import ConfigError
from tests.jobs.outputs import write_output


def test_whole_output_gives_exit_code_0_and_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_output(tmp_path)
    assert main(["fsck", str(tmp_path)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["num_rows"] == 12
    assert summary["num_problems"] == 0
    assert summary["complete"] is True


def test_broken_output_gives_exit_code_3_and_lists_at_most_what_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_output(tmp_path)
    for row in range(4):
        store.delete(f"images/part-00000/{row}.png")
    assert main(["fsck", str(tmp_path), "--max-problems", "2", "--no-checksums"]) == 3
    summary = json.loads(capsys.readouterr().out)
    assert summary["num_problems"] == 4
    assert len(summary["problems"]) == 2


def test_unfinished_output_gives_exit_code_3(tmp_path: Path) -> None:
    write_output(tmp_path).delete("_SUMMARY.json")
    assert run(FsckConfig(out=str(tmp_path))).exit_code == 3


def test_folder_that_is_no_output_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fsck", str(tmp_path / "nowhere")]) == 2
    assert "_schema.json" in capsys.readouterr().err


def test_orphans_are_listed_and_change_no_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_output(tmp_path)
    for number in range(3):
        store.write_bytes(f"table/part-00000.0000000{number}.parquet", b"x")
    assert main(["fsck", str(tmp_path), "--max-problems", "2"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_orphans"], summary["num_orphans_deleted"]) == (3, 0)
    assert summary["orphans"] == [f"table/part-00000.0000000{n}.parquet" for n in range(2)]
    assert len(list((tmp_path / "table").iterdir())) == 6


def test_orphans_are_deleted_on_request_and_nothing_else(tmp_path: Path) -> None:
    store = write_output(tmp_path)
    before = {file.path for file in store.list()}
    store.write_bytes("images/part-00002/late.png", b"x")
    found = run(FsckConfig(out=str(tmp_path), delete_orphans=True))
    assert (found.exit_code, found.num_orphans_deleted) == (0, 1)
    assert {file.path for file in store.list()} == before


@pytest.mark.parametrize("lost", ["_SUMMARY.json", "images/part-00001/5.png"])
def test_orphans_of_an_output_that_is_not_whole_are_not_deleted(tmp_path: Path, lost: str) -> None:
    store = write_output(tmp_path)
    store.write_bytes("images/part-00002/late.png", b"x")
    store.delete(lost)
    with pytest.raises(ConfigError, match=r"wants an output that is complete"):
        run(FsckConfig(out=str(tmp_path), delete_orphans=True))
    assert store.exists("images/part-00002/late.png")
