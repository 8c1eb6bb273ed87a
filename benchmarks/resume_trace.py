"""Times of functions in all processes of a job, taken without a change to the job.

A folder with a ``sitecustomize.py`` that calls ``install`` is put on ``PYTHONPATH``: every Python
process of the job then writes when it began, when the modules below were imported, and when the
functions below ran, a line each, into one file. Standard library only: this runs in all of them.
"""

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FILE_VARIABLE = "SDXL_BENCHMARK_TRACE"

# By module: functions that are timed. One that is no more there is written down as absent.
TARGETS: Mapping[str, Sequence[str]] = {
    "torch": (),  # the first of the large libraries that a worker imports
    "jobs.train": ("run",),
    "jobs.train_start": ("open_output", "start"),
    "ray.train.v2._internal.execution.controller.controller": (
        "TrainController._shutdown_worker_group",
        "TrainController._start_worker_group",
    ),
    "cluster.train_worker": ("train_worker", "make_stage", "load_checkpoint"),
    "cluster.zero": ("ZeroEngine.__init__",),
    "cluster.train_loop": ("train_loop", "_take_step"),
}


def site_folder(folder: Path) -> Path:
    """Writes the folder that has to be first on ``PYTHONPATH``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "from benchmarks.resume_trace import install\n\ninstall()\n"
    (folder / "sitecustomize.py").write_text(text)
    return folder


def install() -> None:
    """Begins to write, in a process whose environment names the file."""
    if os.environ.get(FILE_VARIABLE):
        _write("process", _process_start(), time.time())
        sys.meta_path.insert(0, _Finder())


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Lines with ``pid``, ``name``, ``start`` and ``end`` (seconds since the epoch), by start."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0].splitlines()  # the last line may be half written
    return sorted(map(json.loads, whole), key=lambda line: line["start"])


class _Finder(importlib.abc.MetaPathFinder):
    """Leaves the finding to the others, and times what they find."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in TARGETS:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                loader: Any = spec.loader
                loader.exec_module = functools.partial(_execute, name, loader.exec_module)
                return spec
        return None


def _execute(name: str, original: Callable[[ModuleType], None], module: ModuleType) -> None:
    started = time.time()
    original(module)
    _write(f"import {name}", started, time.time())
    for qualified in TARGETS[name]:
        *owners, last = qualified.split(".")
        owner = functools.reduce(lambda found, part: getattr(found, part, None), owners, module)
        if hasattr(owner, last):
            setattr(owner, last, _timed(last if not owners else qualified, getattr(owner, last)))
        else:
            _write(f"absent {name}.{qualified}", started, started)


def _timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **more: Any) -> Any:
        started = time.time()
        _write(f"begin {name}", started, started)
        try:
            return function(*arguments, **more)
        finally:
            _write(name, started, time.time())

    return timed


def _write(name: str, start: float, end: float) -> None:
    line = json.dumps({"pid": os.getpid(), "name": name, "start": start, "end": end}) + "\n"
    # One write to a file that is open for appending: lines of several processes do not mix.
    handle = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def _process_start() -> float:
    """When the kernel started this process, seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime_s + ticks / os.sysconf("SC_CLK_TCK")
