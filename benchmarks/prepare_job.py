"""``sdxl prepare`` as a Ray job: its rate beside one bare process, and its driver's memory."""

import argparse
import io
import itertools
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.harness import Target, progress, spread, write_results
from benchmarks.jobs_run import read_events, run_watched
from benchmarks.prepare_pictures import make_files, photograph
from jobs.prepare_config import PrepareConfig
from sdxl_core.data.sample_maker import PictureOptions, make_samples
from sdxl_core.storage.source_plan import plan_sources
from sdxl_core.storage.sources import read_slice
from tests.cluster.prepare_here import prepare_here

MIN_SHARE = 0.85
MAX_GROWTH = 1.1
MEGAPIXELS = (0.8, 1.2, 2.0, 3.0)
PICTURES_PER_TAR = 512
ROWS_OF_ONE_PROCESS = 1024

_WHAT = """
*Rate*: {num_rows} made photographs ({per_size} different ones of each of {sizes} MP) in tars of
{per_tar} as img2dataset makes them, prepared by `sdxl prepare TARS OUT` as a user types it on
{num_cpus} CPUs. Beside it, before and after the job by turns: one process on one core that does the
same to the first {num_few} rows without Ray (it stages, puts all samples in random order,
writes, hashes and commits); and one that only reads the tars and makes the samples in memory
(`read_slice`, `make_samples`). The job's rate is over the time from the start of its first slice to
its last commit, by its own `_events.jsonl`. What comes before is its start-up and is given apart.

*Memory* is of the driver's process over `sdxl prepare TABLE OUT --preset tiny`, a parquet table of
64 x 64 px JPEG files, sampled four times a second.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures; ``--rows 128 --rounds 1 --tiny-rows 100 400`` tries the script."""
    parser = argparse.ArgumentParser(prog="benchmarks prepare_job", description=__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--per-size", type=int, default=4)
    parser.add_argument("--tiny-rows", type=int, nargs="*", default=[10_000, 200_000])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    num_cpus = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        rounds = _rates(Path(scratch), options, num_cpus=num_cpus)
    memory = []
    for num_rows in options.tiny_rows:
        with tempfile.TemporaryDirectory() as scratch:
            memory.append(_memory(Path(scratch), num_rows))
        progress(json.dumps(memory[-1]))
    shares = spread([found["share"] for found in rounds]) if rounds else {}
    write_results(
        "prepare_job",
        what=_WHAT.format(
            num_rows=options.rows,
            per_size=options.per_size,
            sizes=", ".join(map(str, MEGAPIXELS)),
            per_tar=PICTURES_PER_TAR,
            num_few=ROWS_OF_ONE_PROCESS,
            num_cpus=num_cpus,
        ),
        values={"rounds": rounds, "share": shares, "memory": memory, "num_cpus": num_cpus},
        tables={"rate": rounds, "memory of the driver": memory},
        targets=_targets(rounds, memory, num_cpus=num_cpus),
        is_trial=options.rows < 4096
        or options.rounds < 2
        or max(options.tiny_rows, default=0) < 200_000,
    )


def _rates(folder: Path, options: argparse.Namespace, *, num_cpus: int) -> list[dict[str, Any]]:
    pictures = make_files(MEGAPIXELS, options.per_size)
    by_turns = list(itertools.chain.from_iterable(zip(*pictures.values(), strict=True)))
    write_tars(folder / "source", by_turns, num_rows=options.rows)
    write_tars(folder / "few", by_turns, num_rows=min(options.rows, ROWS_OF_ONE_PROCESS))
    rounds = []
    for index in range(options.rounds):
        before = _one_process_rate(folder)
        job = _run_job(folder, index, num_rows=options.rows)
        one = (before + _one_process_rate(folder)) / 2
        in_memory = _in_memory_rate(folder / "few")
        job |= {
            "one_process_rows_per_s": round(one, 2),
            "share": round(job["job_rows_per_s"] / (num_cpus * one), 4),
            "in_memory_rows_per_s": round(in_memory, 2),
            "share_of_in_memory": round(job["job_rows_per_s"] / (num_cpus * in_memory), 4),
        }
        progress(json.dumps(job))
        rounds.append(job)
    return rounds


def write_tars(folder: Path, pictures: Sequence[bytes], *, num_rows: int) -> None:
    """Tars of captioned pictures, ``pictures`` over and over; no two files have equal bytes."""
    folder.mkdir()
    for first in range(0, num_rows, PICTURES_PER_TAR):
        with tarfile.open(folder / f"{first // PICTURES_PER_TAR:05d}.tar", "w") as archive:
            for row in range(first, min(num_rows, first + PICTURES_PER_TAR)):
                # Bytes after the end of a JPEG are no part of the picture.
                data = pictures[row % len(pictures)] + row.to_bytes(8, "big")
                members = {"jpg": data, "txt": f"photograph {row}".encode()}
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{row:08d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def _one_process_rate(folder: Path) -> float:
    """Rows per second of one process on one core that does without Ray what the job does."""
    out, began, cores = folder / "one", 0.0, os.sched_getaffinity(0)

    def begin() -> None:
        nonlocal began
        began = time.time()

    shutil.rmtree(out, ignore_errors=True)
    config = PrepareConfig(source=str(folder / "few"), out=str(out))
    os.sched_setaffinity(0, {min(cores)})
    made = prepare_here(config, once_counted=begin)
    os.sched_setaffinity(0, cores)
    last_commit = max(file.stat().st_mtime for file in (out / "_parts").iterdir())
    return made.num_samples / (last_commit - began)


def _in_memory_rate(source: Path) -> float:
    """Rows per second of one process, one thread, that makes samples and writes nothing."""
    plan = plan_sources([str(source)])
    options = PictureOptions()
    num_rows, started = 0, time.perf_counter()
    for part in range(plan.num_slices):
        for raw in read_slice(plan.slice(part)):
            made = make_samples(raw, options)
            assert isinstance(made, list), made
            num_rows += 1
    return num_rows / (time.perf_counter() - started)


def _run_job(folder: Path, index: int, *, num_rows: int) -> dict[str, Any]:
    out = folder / f"out-{index}"
    run = run_watched(["prepare", str(folder / "source"), str(out)])
    summary = json.loads(run.last_line)
    assert (summary["num_rows"], summary["num_samples"]) == (num_rows, num_rows), summary
    events = read_events(out)
    first = min(e["time"] - e["seconds"] for e in events if e["span"] == "stage")
    staged = max(e["time"] for e in events if e["span"] == "stage")
    last = max(e["time"] for e in events if e["span"] == "finish")
    return {
        "job_rows_per_s": round(num_rows / (last - first), 2),
        "stage_s": round(staged - first, 2),
        "order_and_write_s": round(last - staged, 2),
        "startup_s": round(first - run.began, 2),
        "command_s": round(run.seconds, 2),
        "driver_peak_mb": round(run.peak_mb, 1),
    }


def _memory(folder: Path, num_rows: int) -> dict[str, Any]:
    table = folder / "rows.parquet"
    images = []
    for seed in range(64):
        buffer = io.BytesIO()
        Image.fromarray(photograph(64, 64, seed=seed)).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    rows_at_once = 10_000
    schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("caption", pa.string())])
    with pq.ParquetWriter(table, schema) as writer:
        for first in range(0, num_rows, rows_at_once):
            numbers = range(first, min(num_rows, first + rows_at_once))
            columns = [
                [f"row-{number:08d}" for number in numbers],
                [images[number % 64] + number.to_bytes(8, "big") for number in numbers],
                [f"photograph {number}" for number in numbers],
            ]
            writer.write_table(pa.table(columns, schema=schema))
    run = run_watched(["prepare", str(table), str(folder / "out"), "--preset", "tiny"])
    summary = json.loads(run.last_line)
    assert (summary["num_rows"], summary["num_samples"]) == (num_rows, num_rows), summary
    return {
        "rows": num_rows,
        "seconds": round(run.seconds, 1),
        "rows_per_s": round(num_rows / run.seconds, 1),
        "driver_peak_mb": round(run.peak_mb, 1),
    }


def _targets(
    rounds: Sequence[dict[str, Any]], memory: Sequence[dict[str, Any]], *, num_cpus: int
) -> list[Target]:
    targets = []
    if rounds:
        share = spread([found["share"] for found in rounds])["median"]
        name = f"job's rows/s over {num_cpus} x one process"
        targets.append(Target(name=name, found=share, wanted=MIN_SHARE))
    if len(memory) > 1:
        growth = memory[-1]["driver_peak_mb"] / memory[0]["driver_peak_mb"]
        name = f"driver's peak at {memory[-1]['rows']:,} rows / at {memory[0]['rows']:,}"
        targets.append(Target(name=name, found=growth, wanted=MAX_GROWTH, at_most=True))
    return targets


if __name__ == "__main__":
    main()
