"""The batch plan of a hundred million rows: to open it, to seek in it, to stream it."""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Target, peak_mb, progress, resident_mb, time_of, write_results
from sdxl_core.data.buckets import SDXL_BUCKETS
from sdxl_core.data.plan import PlanSettings, SampleManifest, plan_epoch

ROWS = (1_000_000, 10_000_000, 100_000_000)
UNIT_ROWS, UNITS_PER_FILE = 64, 4
MAX_OPEN_S, MAX_SEEK_S, MAX_PEAK_MB, MIN_BATCHES_PER_S = 10.0, 2.0, 500.0, 200.0

_WHAT = """
A made-up manifest in the 40 buckets of SDXL, {unit_rows} rows in each unit, {units_per_file} units
in each file; batches of {batch} rows, windows of {window} units, bucket temperature 2. Each size
has a process of its own. Seconds are CPU seconds of one thread (on a quiet machine wall seconds are
the same); memory is what the process had in RAM at most, above what it had after its imports.
`open`: the plan of epoch 3, all of its batches known. `seek`: from there to the first batch of its
second half. `stream`: up to {stream:,} batches from there, in which every bucket that is met orders
its units. `coverage`: rows seen 0, 1 and more times. No row is ever an object; the manifest and the
plan hold some bytes for each unit and each batch.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures; ``--rows 100000`` tries the script."""
    parser = argparse.ArgumentParser(prog="benchmarks plan_batches", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--window-units", type=int, default=16)
    parser.add_argument("--stream", type=int, default=5000, help="batches to stream")
    parser.add_argument("--only", action="store_true", help="this process, one size, JSON out")
    options = parser.parse_args(arguments)
    if options.only:
        print(json.dumps(measure(options)))
        return
    found = [_measure_apart(options, num_rows) for num_rows in options.rows]
    largest = found[-1]
    write_results(
        "plan_batches",
        what=_WHAT.format(
            unit_rows=UNIT_ROWS,
            units_per_file=UNITS_PER_FILE,
            batch=options.batch_size,
            window=options.window_units,
            stream=options.stream,
        ),
        values={"runs": found},
        tables={"found": found},
        targets=[
            Target(name=f"{name}, {largest['rows']:,} rows", found=largest[key], **wanted)
            for name, key, wanted in (
                ("open, s", "open_s", {"wanted": MAX_OPEN_S, "at_most": True}),
                ("seek, s", "seek_s", {"wanted": MAX_SEEK_S, "at_most": True}),
                ("peak, MB", "peak_mb", {"wanted": MAX_PEAK_MB, "at_most": True}),
                ("batches/s", "batches_per_s", {"wanted": MIN_BATCHES_PER_S}),
            )
        ],
        is_trial=max(options.rows) < max(ROWS),
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One size, in this process."""
    start_mb = resident_mb()
    manifest = made_up_manifest(options.rows[0])
    manifest_mb = resident_mb() - start_mb
    settings = PlanSettings(
        seed=0,
        global_batch_size=options.batch_size,
        window_units=options.window_units,
        bucket_temperature=2.0,
    )
    opened: dict[str, Any] = {}

    def stream(count: int) -> None:
        plan = opened["plan"]
        for _batch in itertools.islice(plan.batches(plan.num_batches // 2), count):
            pass

    open_took = time_of(lambda: opened.update(plan=plan_epoch(manifest, settings, 3)))
    open_mb = peak_mb() - start_mb
    seek_took = time_of(lambda: stream(1))
    num_batches = opened["plan"].num_batches
    num_streamed = min(options.stream, num_batches - num_batches // 2)
    stream_took = time_of(lambda: stream(num_streamed))
    coverage_took = time_of(lambda: opened.update(coverage=opened["plan"].coverage()))
    coverage = opened["coverage"]
    assert coverage.num_rows == manifest.num_rows
    assert sum(bucket.num_drawn for bucket in coverage.buckets) == num_batches * options.batch_size
    return {
        "rows": manifest.num_rows,
        "units": manifest.num_units,
        "batches": num_batches,
        "open_s": round(open_took.cpu_s, 3),
        "seek_s": round(seek_took.cpu_s, 3),
        "batches_per_s": round(num_streamed / stream_took.cpu_s),
        "coverage_s": round(coverage_took.cpu_s, 3),
        "manifest_mb": round(manifest_mb, 1),
        "open_peak_mb": round(open_mb, 1),
        "peak_mb": round(peak_mb() - start_mb, 1),
        "wall_s": round(
            sum(took.wall_s for took in (open_took, seek_took, stream_took, coverage_took)), 2
        ),
    }


def made_up_manifest(num_rows: int) -> SampleManifest:
    """Units of 64 rows whose buckets have shares from many to few."""
    num_units = num_rows // UNIT_ROWS
    rng = np.random.default_rng(0)
    shares = 1.0 / np.arange(1, len(SDXL_BUCKETS) + 1)
    num_files = -(-num_units // UNITS_PER_FILE)
    file_bucket = rng.choice(len(shares), size=num_files, p=shares / shares.sum()).astype(np.int32)
    unit_file = (np.arange(num_units) // UNITS_PER_FILE).astype(np.int32)
    return SampleManifest(
        buckets=SDXL_BUCKETS,
        files=tuple(
            "s3://bucket/samples/bucket={}x{}/part-{:05d}.parquet".format(
                *SDXL_BUCKETS[bucket], number
            )
            for number, bucket in enumerate(file_bucket.tolist())
        ),
        unit_bucket=file_bucket[unit_file],
        unit_file=unit_file,
        unit_index=(np.arange(num_units) % UNITS_PER_FILE).astype(np.int32),
        unit_rows=np.full(num_units, UNIT_ROWS, np.int32),
        unit_dataset=np.zeros(num_units, np.int16),
    )


def _measure_apart(options: argparse.Namespace, num_rows: int) -> dict[str, Any]:
    flags = {
        "--rows": num_rows,
        "--batch-size": options.batch_size,
        "--window-units": options.window_units,
        "--stream": options.stream,
    }
    given = [str(word) for flag in flags.items() for word in flag]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plan_batches", "--only", *given],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    progress(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
