"""The whole Ray job beside bare engines on the same cores, on the same rows."""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Target, progress, spread, write_results
from benchmarks.jobs_run import read_events, run_watched
from benchmarks.models import model_arguments
from benchmarks.rows import homogeneous_rows, mixed_rows, write_table
from benchmarks.sides import Models, encode_texts, run_engine
from sdxl_core.contract.request import Request
from sdxl_core.diffusion.decoding import decode_row
from sdxl_core.diffusion.tasks import LaneKey
from sdxl_core.nets.weights import load_model
from sdxl_core.storage.image_files import encode_image

_WHAT = """
`sdxl generate` as a user types it, beside {workers} processes that each run a bare engine over
every {workers}th row, then decode the pictures and write them as PNG, with the same model, slots,
dtype (bfloat16) and one torch thread each. The job's rate is over the time from the start of its
first denoising to its last commit, taken from its own `_events.jsonl`; what comes before that is
its start-up and is given apart. The engines' models are loaded and their texts encoded before
their clock starts; the job encodes, hands over, hashes and commits within its time.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures; ``--rows 16 --rounds 1`` tries the script."""
    parser = argparse.ArgumentParser(prog="benchmarks job_vs_engine", description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tables", nargs="+", default=["homogeneous", "mixed"])
    options = parser.parse_args(arguments)
    found = {}
    for name in options.tables:
        rows = {"homogeneous": homogeneous_rows, "mixed": mixed_rows}[name](options.rows)
        found[name] = _compare(name, rows, num_workers=options.workers, rounds=options.rounds)
    shown = [
        {"table": name, "round": index + 1} | measured
        for name, values in found.items()
        for index, measured in enumerate(values["rounds"])
    ]
    write_results(
        "job_vs_engine",
        what=_WHAT.format(workers=options.workers),
        values={"num_rows": options.rows, "workers": options.workers, "tables": found},
        tables={"rounds": shown},
        targets=[
            Target(
                name=f"{name}: job / bare engines, images per second",
                found=values["ratio"]["median"],
                wanted=0.9,
            )
            for name, values in found.items()
        ],
        is_trial=options.rows < 256,
    )


def _compare(
    name: str, rows: Sequence[Request], *, num_workers: int, rounds: int
) -> dict[str, Any]:
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = write_table(rows, folder / "prompts.parquet")
        flags = model_arguments(folder)
        for index in range(rounds):
            job = _run_job(table, folder / f"out-{index}", flags, num_rows=len(rows))
            slots = _slots_of(folder / f"out-{index}")
            seconds = _run_bare(rows, flags, slots, num_workers=num_workers, out=folder)
            rate = len(rows) / seconds
            job |= {"engine_images_per_s": round(rate, 3)}
            job |= {"ratio": round(job["job_images_per_s"] / rate, 4)}
            progress(f"{name}, round {index + 1}: {json.dumps(job)}")
            measured.append(job)
    return {"rounds": measured, "ratio": spread([round_["ratio"] for round_ in measured])}


def _run_job(table: Path, out: Path, flags: Sequence[str], *, num_rows: int) -> dict[str, Any]:
    run = run_watched(["generate", str(table), str(out), *flags])
    summary = json.loads(run.last_line)
    assert (summary["num_ok"], summary["num_failed"]) == (num_rows, 0), summary
    events = read_events(out)
    first = min(e["time"] - e["seconds"] for e in events if e["span"] == "denoise")
    last = max(e["time"] for e in events if e["span"] == "write")
    first_commit = min(e["time"] for e in events if e["span"] == "write")
    return {
        "job_images_per_s": round(num_rows / (last - first), 3),
        "startup_s": round(first - run.began, 2),
        "first_images_s": round(first_commit - run.began, 2),
        "making_s": round(last - first, 2),
        "ending_s": round(run.began + run.seconds - last, 2),
        "command_s": round(run.seconds, 2),
        "driver_peak_mb": round(run.peak_mb, 1),
    }


def _slots_of(out: Path) -> dict[str, dict[LaneKey, int]]:
    """The slots that the job chose for every lane, so that the bare engines take the same."""
    slots: dict[str, dict[LaneKey, int]] = {}
    for lane in json.loads((out / "_plan.json").read_text())["slots"]:
        stage, num_slots = lane.pop("stage"), lane.pop("num_slots")
        slots.setdefault(stage, {})[LaneKey(**lane)] = num_slots
    return slots


def _run_bare(
    rows: Sequence[Request],
    flags: Sequence[str],
    slots: dict[str, dict[LaneKey, int]],
    *,
    num_workers: int,
    out: Path,
) -> float:
    """Seconds from a common start to the end of the last process."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(num_workers + 1)
    workers = [
        context.Process(
            target=_bare_worker,
            args=(list(rows[index::num_workers]), list(flags), slots, barrier, out),
        )
        for index in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    barrier.wait(timeout=300)
    started = time.perf_counter()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers), "a bare engine failed"
    return time.perf_counter() - started


def _bare_worker(
    rows: list[Request],
    flags: list[str],
    slots: dict[str, dict[LaneKey, int]],
    barrier: Barrier,
    out: Path,
) -> None:
    torch.set_num_threads(1)
    paths = dict(zip(flags[::2], flags[1::2], strict=True))
    models: Models = {"base": load_model(paths["--model"], dtype=torch.bfloat16)}
    if any(row.refiner for row in rows):
        models["refiner"] = load_model(paths["--refiner"], dtype=torch.bfloat16)
    texts = encode_texts(models, rows)
    run_engine(models, rows[:1], texts[:1], slots=1)
    barrier.wait(timeout=300)
    done, _ = run_engine(models, rows, texts, slots=slots)
    for row in rows:
        rgb_HWC, is_finite = decode_row(models["base"], done[row.id].latents_CHW, device="cpu")
        assert is_finite, row.id
        data = encode_image(rgb_HWC, image_format="png", parameters=vars(row))
        (out / f"{row.id}.png").write_bytes(data)


if __name__ == "__main__":
    main()
