"""The command ``sdxl fsck``."""

import json
from pathlib import Path

import pytest

from jobs.__main__ import main
from jobs.fsck import FsckConfig, run
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
