"""The parts of a resume, from a trace that is written by hand, and the trace of a real process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.resume_seconds import command_parts, worker_parts
from benchmarks.resume_trace import FILE_VARIABLE, read_trace, site_folder
from tests.flow.kit import REPOSITORY

KILLED_AT = 100.0


def line(pid: int, name: str, start: float, end: float | None = None) -> dict[str, Any]:
    return {"pid": pid, "name": name, "start": start, "end": start if end is None else end}


def start_of_a_worker(pid: int, at: float) -> list[dict[str, Any]]:
    """Nine parts, of 1, 2, 3 .. seconds from ``at`` on."""
    ends = [at + sum(range(1, number + 1)) for number in range(10)]
    return [
        line(pid, "process", at, ends[1]),
        line(pid, "import torch", ends[2], ends[3]),
        line(pid, "begin train_worker", ends[3]),
        line(pid, "begin make_stage", ends[4]),
        line(pid, "make_stage", ends[4], ends[5]),
        line(pid, "ZeroEngine.__init__", ends[5], ends[6]),
        line(pid, "load_checkpoint", ends[6], ends[7]),
        line(pid, "begin train_loop", ends[7]),
        line(pid, "begin _take_step", ends[8]),
        line(pid, "_take_step", ends[8], ends[9]),
    ]


def test_the_parts_of_a_lost_worker_add_up_to_the_whole() -> None:
    before = start_of_a_worker(1, 10.0)
    trace = [
        *before,
        line(2, "begin TrainController._shutdown_worker_group", 102.0),
        line(2, "begin TrainController._start_worker_group", 105.0),
        *start_of_a_worker(3, 105.0),
    ]
    parts = worker_parts(trace, KILLED_AT)
    assert list(parts.values()) == [2.0, 3.0, *map(float, range(1, 10))]
    assert sum(parts.values()) == 105 + 45 - KILLED_AT


def test_a_process_that_was_there_before_takes_no_time_to_start() -> None:
    trace = [
        line(3, "process", 50.0, 51.0),
        line(2, "begin TrainController._shutdown_worker_group", 102.0),
        line(2, "begin TrainController._start_worker_group", 105.0),
        *start_of_a_worker(3, 105.0)[1:],
    ]
    parts = worker_parts(trace, KILLED_AT)
    assert (parts["a process starts"], parts["Ray's worker comes up"]) == (0.0, 3.0)


def test_the_parts_of_a_command_that_is_given_again_add_up_to_the_whole() -> None:
    trace = [
        line(4, "begin run", 103.0),
        line(4, "open_output", 103.0, 104.0),
        line(4, "begin start", 110.0),
        line(4, "start", 110.0, 112.0),
        line(5, "begin TrainController._start_worker_group", 115.0),
        *start_of_a_worker(6, 115.0),
    ]
    parts = command_parts(trace, KILLED_AT)
    assert list(parts.values()) == [3.0, 1.0, 6.0, 2.0, 3.0, *map(float, range(1, 10))]


def test_a_process_with_the_site_folder_tells_its_imports_and_calls(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    path = os.pathsep.join([str(site_folder(tmp_path / "site")), str(tmp_path), str(REPOSITORY)])
    package = tmp_path / "cluster"  # in place of the real one, which takes seconds to import
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "zero.py").write_text("class ZeroEngine:\n    def __init__(self):\n        pass\n")
    (package / "train_loop.py").write_text("def train_loop():\n    return 7\n")
    code = (
        "from cluster.train_loop import train_loop\nfrom cluster.zero import ZeroEngine\n"
        "ZeroEngine()\nassert train_loop() == 7"
    )
    env = {**os.environ, "PYTHONPATH": path, FILE_VARIABLE: str(trace)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, cwd=tmp_path)
    names = {line["name"] for line in read_trace(trace)}
    assert names >= {"process", "import cluster.zero", "ZeroEngine.__init__", "train_loop"}
    assert "absent cluster.train_loop._take_step" in names
    assert all(line["start"] <= line["end"] for line in read_trace(trace))
