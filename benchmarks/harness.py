"""What every benchmark shares: the machine on record, fair rounds, results as JSON and markdown."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"

_PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "ray", "pyarrow", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What the benchmark is held to: ``found`` against ``wanted``."""

    name: str
    found: float
    wanted: float
    at_most: bool = False

    @property
    def is_met(self) -> bool:
        """Whether ``found`` is good enough."""
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted

    def line(self) -> str:
        """One row of a markdown table."""
        sign = "<=" if self.at_most else ">="
        met = "yes" if self.is_met else "**no**"
        return f"| {self.name} | {self.found:.4g} | {sign} {self.wanted:.4g} | {met} |"


def environment(*, device: str = "cpu") -> dict[str, Any]:
    """The machine, the libraries and the commit, for whoever compares results later."""
    found: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "has_uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
        }
    return found


def write_results(
    name: str,
    *,
    what: str,
    values: Mapping[str, Any],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    targets: Sequence[Target],
    device: str = "cpu",
    is_trial: bool = False,
    is_shown: bool = True,
) -> None:
    """Writes ``results/NAME.json`` and ``results/NAME.md``, and shows the latter.

    Args:
        name: Of the benchmark.
        what: What was measured and how, for people.
        values: All that was found.
        tables: Rows to show, by heading; the keys of the first row are the columns.
        targets: What it is held to.
        device: Where it ran.
        is_trial: Whether sizes were cut down to see that the script works: nothing is written.
        is_shown: Whether to print the markdown.
    """
    where = environment(device=device)
    document = {
        "benchmark": name,
        "environment": where,
        "targets": [dataclasses.asdict(target) | {"met": target.is_met} for target in targets],
        **values,
    }
    packages = ", ".join(f"{key} {value}" for key, value in where["packages"].items())
    lines = [
        f"# {name}",
        "",
        what.strip(),
        "",
        f"{where['time']}, commit {where['commit']}; {where.get('gpu', where['cpu'])}, "
        f"{where['cores']} cores, load average {where['load_average'][0]}; {packages}.",
    ]
    if targets:
        lines += ["", "| target | found | wanted | met |", "|--|--|--|--|"]
        lines += [target.line() for target in targets]
    for heading, rows in tables.items():
        lines += ["", f"## {heading}", "", *_markdown_table(rows)]
    text = "\n".join(lines) + "\n"
    if is_shown:
        print(text, flush=True)
    if not is_trial:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        (RESULTS / f"{name}.md").write_text(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Took:
    """Wall seconds of a piece of work, and seconds that this process's threads ran meanwhile.

    On a busy machine the second number is the one to compare: a process that waits for a core runs
    up no CPU seconds. With one thread and a quiet machine the two are equal.
    """

    wall_s: float
    cpu_s: float


def time_of(work: Callable[[], object]) -> Took:
    """Runs ``work`` once."""
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    return Took(wall_s=time.perf_counter() - started, cpu_s=time.process_time() - cpu_started)


def interleaved(sides: Mapping[str, Sequence[Callable[[], object]]]) -> dict[str, list[Took]]:
    """Times of every side in every round; sides take turns, and the first one changes.

    What else the machine does then hits all sides alike, and ratios within a round are fair.

    Args:
        sides: What each side does in each round; equally many rounds.
    """
    took: dict[str, list[Took]] = {name: [] for name in sides}
    for index in range(min(map(len, sides.values()))):
        names = list(sides) if index % 2 == 0 else list(reversed(sides))
        for name in names:
            took[name].append(time_of(sides[name][index]))
            progress(f"round {index + 1} {name}: {took[name][-1]}")
    return took


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest."""
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }


def progress(text: str) -> None:
    """One line on stdout, at once."""
    print(f"  {text}", flush=True)


def resident_mb(pid: int | str = "self") -> float:
    """Memory of a process that is in RAM now, MB."""
    return _status_kb(pid, "VmRSS") / 1e3


def peak_mb(pid: int | str = "self") -> float:
    """Most memory that a process ever had in RAM, MB."""
    return _status_kb(pid, "VmHWM") / 1e3


def _status_kb(pid: int | str, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1])
    return 0.0


def _markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["(nothing)"]
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "--|" * len(columns)]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        shown = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return lines


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
