"""Seconds from SIGKILL of a training worker, and of the whole command, to the first new step.

The command is started, left to take a checkpoint, and then a worker is killed; when it trains
again, the command is killed with all that it started, and given again. Where the seconds go is
taken from inside the processes (``benchmarks.resume_trace``); the parts add up to the whole.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import progress, spread, write_results
from benchmarks.resume_trace import FILE_VARIABLE, read_trace, site_folder
from sdxl_core.storage.stores import open_store
from sdxl_core.training.checkpoint_store import committed_steps
from tests.cluster.train_samples import write_samples
from tests.flow import kit
from tests.micro_models import write_models

WORKER, COMMAND = "a worker", "the command"
Trace = Sequence[Mapping[str, Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures some rounds; ``--rounds 1 --trial`` tries the script."""
    options = _parse(arguments)
    found: dict[str, list[dict[str, float]]] = {WORKER: [], COMMAND: []}
    with tempfile.TemporaryDirectory(prefix="resume-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        samples = write_samples(folder / "samples", model_digest="x", num_parts=4)
        model = options.model
        if model == "micro":
            model = write_models(folder / "models").base
        for number in range(options.rounds):
            for killed, parts in _round(options, samples, model, folder / f"{number}").items():
                found[killed].append(parts)
                progress(f"round {number + 1}, {killed}: {sum(parts.values()):.1f} s, {parts}")
    _report(options, found)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="resume_seconds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="micro", help="micro, tiny, or a folder")
    parser.add_argument("--timeout", type=float, default=300.0, help="of each wait, seconds")
    parser.add_argument("--trial", action="store_true", help="write no results")
    return parser.parse_args(arguments)


def _round(
    options: argparse.Namespace, samples: str, model: str, folder: Path
) -> dict[str, dict[str, float]]:
    """Both kills in one fresh output; the seconds of each by part."""
    out, trace = folder / "out", folder / "trace.jsonl"
    path = [str(site_folder(folder / "site")), str(kit.REPOSITORY)]
    env = {"PYTHONPATH": os.pathsep.join(path), FILE_VARIABLE: str(trace), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "jobs", "train", samples, str(out), "--model", model,
        "--steps", "1000000", "--batch", "4", "--any-latents", "--export", "none",
        "--how.workers", str(options.workers), "--how.checkpoint-every", "5",
        "--how.report-every", "1",
    ]  # fmt: skip
    with kit.running(command, folder / "log", env) as process:
        _wait(
            lambda: committed_steps(open_store(out)),
            "a checkpoint",
            process,
            folder / "log",
            options.timeout,
        )
        workers = [
            pid for pid, title in kit.descendants(process.pid).items() if "RayTrainWorker" in title
        ]
        killed_at = time.time()
        os.kill(workers[-1], signal.SIGKILL)
        _wait_for_step(trace, killed_at, process, folder / "log", options.timeout)
        of_worker = worker_parts(read_trace(trace), killed_at)
        progress(f"a worker was killed: {of_worker}")
        killed_at = time.time()
    with kit.running(command, folder / "log-2", env) as process:
        _wait_for_step(trace, killed_at, process, folder / "log-2", options.timeout)
        of_command = command_parts(read_trace(trace), killed_at)
    return {WORKER: of_worker, COMMAND: of_command}


def _wait_for_step(
    trace: Path, since: float, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float
) -> None:
    """Until a worker that began its loop after ``since`` has made a step."""
    _wait(
        lambda: _first(read_trace(trace), "_take_step", _loop_start(read_trace(trace), since)),
        "the first new step",
        process,
        log,
        timeout_s,
    )


def _wait(
    condition: Callable[[], Any],
    what: str,
    process: "subprocess.Popen[bytes]",
    log: Path,
    timeout_s: float,
) -> None:
    """Until ``condition`` holds; a command that has ended before is an error with what it said."""
    kit.wait_until(lambda: condition() or process.poll() is not None, what, timeout_s=timeout_s)
    if process.poll() is not None:
        raise RuntimeError(f"{what}: the command ended\n{log.read_text(errors='replace')[-4000:]}")


def _loop_start(trace: Trace, since: float) -> float:
    line = _first(trace, "begin train_loop", since)
    return float("inf") if line is None else float(line["start"])


def _first(
    trace: Trace, name: str, since: float, pid: int | None = None
) -> Mapping[str, Any] | None:
    """The first line of that name that starts at ``since`` or later."""
    lines = (
        line
        for line in trace
        if line["name"] == name and line["start"] >= since and pid in (None, line["pid"])
    )
    return next(lines, None)


def worker_parts(trace: Trace, killed_at: float) -> dict[str, float]:
    """Seconds of each part from the death of a worker to the first new step.

    Args:
        trace: of all processes, by start.
        killed_at: seconds since the epoch.
    """
    marks = {
        "Ray Train notices": _time(
            trace, "begin TrainController._shutdown_worker_group", killed_at
        ),
        "the other workers are stopped": _time(
            trace, "begin TrainController._start_worker_group", killed_at
        ),
        **_start_marks(trace, killed_at),
    }
    return _differences(marks, killed_at)


def command_parts(trace: Trace, killed_at: float) -> dict[str, float]:
    """Seconds of each part from the death of the command, given again at once, to the first step.

    Args:
        trace: of all processes, by start.
        killed_at: seconds since the epoch.
    """
    marks = {
        "the command's imports": _time(trace, "begin run", killed_at),
        "output is looked at": _time(trace, "open_output", killed_at, "end"),
        "Ray starts": _time(trace, "begin start", killed_at),
        "samples and model are looked at": _time(trace, "start", killed_at, "end"),
        "Ray Train starts": _time(trace, "begin TrainController._start_worker_group", killed_at),
        **_start_marks(trace, killed_at),
    }
    return _differences(marks, killed_at)


def _start_marks(trace: Trace, since: float) -> dict[str, float | None]:
    """Ends of the parts of a worker's start, of the first one to train again."""
    loop = _first(trace, "begin train_loop", since)
    assert loop is not None, "no worker came to its loop"
    pid = int(loop["pid"])
    process = next(line for line in trace if line["name"] == "process" and line["pid"] == pid)

    def at(name: str, end: str = "end") -> float | None:
        return _time(trace, name, since, end, pid)

    return {
        "a process starts": process["end"],
        "Ray's worker comes up": at("import torch", "start"),
        "libraries are imported, the workers meet": at("begin train_worker"),
        "the checkpoint is found": at("begin make_stage"),
        "networks are built": at("make_stage"),
        "DeepSpeed wraps them": at("ZeroEngine.__init__"),
        "the checkpoint is loaded": at("load_checkpoint"),
        "the data are found": at("begin _take_step"),
        "the first step": at("_take_step"),
    }


def _time(
    trace: Trace, name: str, since: float, which: str = "start", pid: int | None = None
) -> float | None:
    line = _first(trace, name, since, pid)
    return None if line is None else float(line[which])


def _differences(marks: Mapping[str, float | None], start: float) -> dict[str, float]:
    """Seconds between neighbours. A part that was over before the last one took none of its own."""
    parts, last = {}, start
    for name, mark in marks.items():
        end = last if mark is None else max(last, mark)
        parts[name] = round(end - last, 3)
        last = end
    return parts


def _report(
    options: argparse.Namespace, found: Mapping[str, Sequence[Mapping[str, float]]]
) -> None:
    tables = {}
    for killed, rounds in found.items():
        rows = [
            {"part": part} | {f"{k} s": v for k, v in spread([r[part] for r in rounds]).items()}
            for part in rounds[0]
        ]
        totals = spread([sum(parts.values()) for parts in rounds])
        rows.append({"part": "all"} | {f"{k} s": v for k, v in totals.items()})
        tables[f"SIGKILL of {killed}"] = rows
    medians = {
        killed: statistics.median(sum(parts.values()) for parts in rounds)
        for killed, rounds in found.items()
    }
    write_results(
        "resume_seconds",
        what=f"{__doc__}\n{options.workers} workers, model {options.model}, "
        f"{options.rounds} rounds.",
        values={"settings": vars(options), "rounds": found, "median_s": medians},
        tables=tables,
        targets=[],
        is_trial=options.trial,
    )


if __name__ == "__main__":
    main()
