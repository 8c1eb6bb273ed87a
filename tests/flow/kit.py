"""What the whole-job tests share: tables, settings, runs by call or by command, results."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.generate_config import GenerateConfig, GenerateHow
from sdxl_core.contract.request import PromptDefaults
from sdxl_core.storage.parts import commit_part, read_part_records, record_path
from sdxl_core.storage.sinks import (
    read_output_table,
    read_part_images,
    read_part_table,
    write_part_files,
)
from sdxl_core.storage.stores import open_store
from tests.micro_models import MicroModels

DEFAULTS = PromptDefaults(steps=2, height=64, width=64)
REPOSITORY = Path(__file__).resolve().parents[2]

Row = Mapping[str, Any]


def write_csv(path: Path, rows: Sequence[Row]) -> str:
    """Rows as CSV; columns that a row lacks are empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_jsonl(path: Path, rows: Sequence[Row]) -> str:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def plain_rows(num_rows: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows that can all be made."""
    return [
        {"id": f"r{index}", "prompt": f"a red cube {index}"} | columns for index in range(num_rows)
    ]


def settings(
    models: MicroModels,
    prompts: str,
    out: str | Path,
    how: Mapping[str, Any] | None = None,
    **more: Any,
) -> GenerateConfig:
    """A config with small defaults; ``how`` and ``more`` change it."""
    values: dict[str, Any] = {
        "model": models.base,
        "refiner": models.refiner,
        "dtype": "float32",
        "rows_per_part": 4,
        "defaults": DEFAULTS,
    } | more
    spread: dict[str, Any] = {"gallery_rows": 0, "denoisers": 1, "retries": 2} | dict(how or {})
    return GenerateConfig(prompts=prompts, out=str(out), how=GenerateHow(**spread), **values)


def read_rows(out: str | Path) -> list[dict[str, Any]]:
    """All committed rows, in the order of the input."""
    rows = [row for table in read_output_table(open_store(out)) for row in table.to_pylist()]
    return sorted(rows, key=lambda row: int(row["input_row"]))


def hashes(out: str | Path) -> dict[str, str | None]:
    """SHA-256 of each row's image, by id; None for rows that failed, unless another has that id."""
    rows = sorted(read_rows(out), key=lambda row: row["sha256"] is not None)
    return {row["id"]: row["sha256"] for row in rows}


def fail_rows(config: GenerateConfig, ids: Collection[str]) -> None:
    """Makes a finished output one in which the rows ``ids`` failed, as its run would have left it.

    Such rows cannot be had by a run that is the same in all else: what breaks rows of a sound table
    is hardware, memory or workers.
    """
    store = open_store(config.out)
    for record in list(read_part_records(store)):
        table = read_part_table(store, record)
        images = read_part_images(store, table)
        rows = table.to_pylist()
        for row in rows:
            if row["id"] in ids:
                lost = dict.fromkeys(("path", "sha256"))
                row |= lost | {"status": "failed", "reason": "internal_error", "detail": "broke"}
                del images[row["input_row"]]
        for file in record.files:
            store.delete(file.path)
        files = write_part_files(
            store,
            record.part,
            pa.Table.from_pylist(rows, schema=table.schema),
            [images.get(row["input_row"]) for row in rows],
            output_format=config.format,
            image_format=config.image_format,
        )
        again = dataclasses.replace(
            record,
            files=tuple(files),
            num_by_status=dict(Counter(row["status"] for row in rows)),
            num_by_reason=dict(Counter(row["reason"] for row in rows if row["reason"])),
        )
        store.delete(record_path(record.part))
        commit_part(store, again)


def command(
    models: MicroModels, prompts: str, out: str | Path, *flags: str, steps: int = 2
) -> list[str]:
    """The command of ``settings``, for another process."""
    return [
        sys.executable, "-m", "jobs", "generate", prompts, str(out),
        "--model", models.base, "--refiner", models.refiner, "--dtype", "float32",
        "--rows-per-part", "4", "--defaults.steps", str(steps), "--defaults.height", "64",
        "--defaults.width", "64", "--how.gallery-rows", "0", "--how.denoisers", "1",
        "--how.retries", "2", *flags,
    ]  # fmt: skip


@contextmanager
def running(
    arguments: list[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process group of its own, of which nothing is left in the end.

    Its output goes to ``log``.
    """
    full_env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(env or {})}
    if "RAY_ADDRESS" not in (env or {}):
        full_env.pop("RAY_ADDRESS", None)
    with log.open("wb") as file:
        process = subprocess.Popen(
            arguments,
            stdout=file,
            stderr=file,
            env=full_env,
            cwd=REPOSITORY,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            kill_tree(process.pid)
            process.wait(timeout=30)


def run_command(
    arguments: list[str], log: Path, env: Mapping[str, str] | None = None, *, timeout_s: float = 100
) -> int:
    """Runs a command to its end; returns the exit code."""
    with running(arguments, log, env) as process:
        return process.wait(timeout=timeout_s)


def descendants(pid: int) -> dict[int, str]:
    """All processes below ``pid`` with their titles."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text()
            titles[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    found: dict[int, str] = {}
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - set(found)
        found |= {child: titles[child] for child in frontier}
    return found


def kill_tree(pid: int) -> None:
    """Ends a process of ours and all that it started."""
    for child in [*descendants(pid), pid]:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_until(condition: Callable[[], Any], what: str, *, timeout_s: float = 60) -> Any:
    """Polls until ``condition`` gives something; returns that."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {timeout_s} s")


def num_parts_done(out: str | Path) -> int:
    """Commit records in a local output."""
    return len(list(Path(out).glob("_parts/*.json")))
