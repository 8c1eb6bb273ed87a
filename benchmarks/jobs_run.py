"""Runs the ``sdxl`` command in a process of its own and watches its memory."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import peak_mb, progress, resident_mb

_SAMPLE_EVERY_S = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchedRun:
    """One command that ended well.

    Attributes:
        began: When it was started, seconds since the epoch.
        seconds: Wall time from start to end.
        peak_mb: Most memory of the driver's process in RAM, MB.
        samples: (seconds since the start, MB in RAM) every quarter of a second.
        last_line: What it printed last: the summary or the plan, as JSON.
    """

    began: float
    seconds: float
    peak_mb: float
    samples: list[tuple[float, float]]
    last_line: str


def run_watched(arguments: Sequence[str], *, timeout_s: float = 1500.0) -> WatchedRun:
    """Runs ``sdxl ARGUMENTS`` to its end.

    Raises:
        RuntimeError: if it fails, with the end of what it said.
    """
    command = [sys.executable, "-m", "jobs", *arguments]
    progress("sdxl " + " ".join(arguments[:1]) + " ...")
    began, started = time.time(), time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    )
    samples, peak = [], 0.0
    try:
        while process.poll() is None:
            elapsed = time.perf_counter() - started
            if elapsed > timeout_s:
                raise RuntimeError(f"{command}: not done after {timeout_s:.0f} s")
            if (resident := _try_mb(resident_mb, process.pid)) is not None:
                samples.append((round(elapsed, 2), round(resident, 1)))
            peak = max(peak, _try_mb(peak_mb, process.pid) or 0.0)
            time.sleep(_SAMPLE_EVERY_S)
    finally:
        if process.poll() is None:
            process.terminate()
        stdout, stderr = process.communicate(timeout=60)
    seconds = time.perf_counter() - started
    if process.returncode not in (0, 3):
        raise RuntimeError(f"{command}: exit code {process.returncode}\n{stderr[-4000:]}")
    return WatchedRun(
        began=began,
        seconds=seconds,
        peak_mb=peak,
        samples=samples,
        last_line=stdout.strip().splitlines()[-1],
    )


def read_events(out: Path) -> list[dict[str, Any]]:
    """The spans of a run, as its workers reported them."""
    return [json.loads(line) for line in (out / "_events.jsonl").read_text().splitlines()]


def _try_mb(measure: Any, pid: int) -> float | None:
    """Memory of a process; None if it has just ended."""
    try:
        found: float = measure(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return found or None


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
