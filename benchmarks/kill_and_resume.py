"""Kills workers and drivers of one job at random moments, and resumes it until it is done.

The same table is made twice: once undisturbed, once with SIGKILL to a random process of the job
each time a few more parts are committed: one of its Ray workers, or the driver with all that it
started. Afterwards every row must be there once, and every image must have the same bytes.
"""

import argparse
import dataclasses
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Target, progress, write_results
from jobs.fsck import FsckConfig
from jobs.fsck import run as fsck
from tests.flow import kit
from tests.micro_models import MicroModels, write_models

DRIVER_SHARE = 0.25
_POOLS = ("EncodePrompts", "Denoise", "WriteImages")
_COMPARED = ("input_row", "id", "status", "reason", "sha256", "num_slots", "numerics")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kill:
    """One SIGKILL: when since the start, whom, and how many parts were committed then."""

    seconds: float
    target: str
    num_parts_done: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs both and writes the results."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        models = write_models(folder / "models")
        prompts = kit.write_jsonl(folder / "prompts.jsonl", table_rows(options.num_rows))
        progress("undisturbed run")
        started = time.monotonic()
        with kit.running(_command(models, prompts, folder / "calm"), folder / "calm.log") as calm:
            if calm.wait(timeout=1800) not in (0, 3):
                raise RuntimeError((folder / "calm.log").read_text()[-4000:])
        calm_seconds = time.monotonic() - started
        kills, exit_code, seconds = _disturbed(options, models, prompts, folder)
        _report(options, folder, kills, exit_code, calm_seconds, seconds)


def table_rows(num_rows: int) -> list[dict[str, Any]]:
    """Rows of several kinds; every fortieth cannot be used."""
    rows: list[dict[str, Any]] = []
    for index in range(num_rows):
        row: dict[str, Any] = {"id": f"row-{index}", "prompt": f"a red cube, number {index}"}
        if index % 3 == 0:
            row |= {"width": 128}
        if index % 4 == 0:
            row |= {"refiner": True}
        if index % 5 == 0:
            row |= {"guidance_scale": 1.0}
        if index % 7 == 0:
            row |= {"sampler": "euler_ancestral", "steps": 9}
        if index % 40 == 39:
            row |= {"height": 65}
        rows.append(row)
    return rows


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kill_and_resume", description=__doc__)
    parser.add_argument("--num-kills", type=int, default=20)
    parser.add_argument("--num-rows", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", action="store_true", help="write no results")
    return parser.parse_args(arguments)


def _command(models: MicroModels, prompts: str, out: Path) -> list[str]:
    return kit.command(models, prompts, out, steps=6)


def _disturbed(
    options: argparse.Namespace, models: MicroModels, prompts: str, folder: Path
) -> tuple[list[Kill], int, float]:
    """Runs the job with kills; returns them, the exit code of the last driver, and the seconds."""
    chance, out = random.Random(options.seed), folder / "killed"
    num_parts = -(-options.num_rows // 4)
    thresholds = [(k + 1) * num_parts // (options.num_kills + 2) for k in range(options.num_kills)]
    kills: list[Kill] = []
    started = time.monotonic()
    while True:
        with kit.running(_command(models, prompts, out), folder / "killed.log") as driver:
            while driver.poll() is None:
                num_done = kit.num_parts_done(out)
                if len(kills) < len(thresholds) and num_done >= thresholds[len(kills)]:
                    time.sleep(chance.uniform(0, 0.5))
                    target = _kill_one(driver, chance)
                    if target:
                        at = round(time.monotonic() - started, 1)
                        kills.append(
                            Kill(seconds=at, target=target, num_parts_done=kit.num_parts_done(out))
                        )
                        progress(f"kill {len(kills)}: {target}, {num_done}/{num_parts} parts")
                time.sleep(0.05)
        exit_code = int(driver.returncode)
        if exit_code in (0, 3):
            return kills, exit_code, time.monotonic() - started
        if exit_code != -signal.SIGKILL:
            raise RuntimeError((folder / "killed.log").read_text()[-4000:])


def _kill_one(driver: "subprocess.Popen[bytes]", chance: random.Random) -> str:
    """Kills the driver or one of its workers; "" if there was none to kill."""
    if chance.random() < DRIVER_SHARE:
        # What a lost machine is: the driver, Ray and all workers at one blow.
        kit.kill_tree(driver.pid)
        driver.wait()
        return "driver"
    workers = {
        pid: pool
        for pid, title in kit.descendants(driver.pid).items()
        for pool in _POOLS
        if title.startswith("ray::") and pool in title
    }
    if not workers:
        return ""
    pid = chance.choice(sorted(workers))
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return workers[pid]


def _report(
    options: argparse.Namespace,
    folder: Path,
    kills: Sequence[Kill],
    exit_code: int,
    calm_seconds: float,
    seconds: float,
) -> None:
    calm, killed = kit.read_rows(folder / "calm"), kit.read_rows(folder / "killed")
    times = [row["input_row"] for row in killed]
    num_lost = len(set(range(options.num_rows)) - set(times))
    num_twice = len(times) - len(set(times))
    by_row = {row["input_row"]: row for row in killed}
    num_other = sum(
        row["input_row"] not in by_row
        or any(row[name] != by_row[row["input_row"]][name] for name in _COMPARED)
        for row in calm
    )
    check = fsck(FsckConfig(out=str(folder / "killed")))
    values = {
        "num_rows": options.num_rows,
        "num_images": sum(row["status"] == "ok" for row in killed),
        "num_kills": len(kills),
        "num_driver_kills": sum(kill.target == "driver" for kill in kills),
        "num_lost": num_lost,
        "num_twice": num_twice,
        "num_rows_that_differ": num_other,
        "fsck_problems": list(check.check.problems),
        "exit_code": exit_code,
        "seconds_undisturbed": round(calm_seconds, 1),
        "seconds_with_kills": round(seconds, 1),
        "seed": options.seed,
        "kills": [dataclasses.asdict(kill) for kill in kills],
    }
    write_results(
        "kill_and_resume",
        what=__doc__ or "",
        values=values,
        tables={"kills": values["kills"]},
        targets=[
            Target(name="kills", found=len(kills), wanted=options.num_kills),
            Target(name="rows lost", found=num_lost, wanted=0, at_most=True),
            Target(name="rows there twice", found=num_twice, wanted=0, at_most=True),
            Target(name="rows or images that differ", found=num_other, wanted=0, at_most=True),
            Target(
                name="problems that fsck finds",
                found=len(check.check.problems),
                wanted=0,
                at_most=True,
            ),
        ],
        is_trial=options.trial,
    )


if __name__ == "__main__":
    main()
