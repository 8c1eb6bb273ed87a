"""``sdxl generate --plan`` on a table of a million rows: seconds, and memory of the driver."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Target, progress, write_results
from benchmarks.jobs_run import run_watched
from benchmarks.models import model_arguments
from benchmarks.rows import GUIDANCE_SCALES, SIZES, STEPS

MAX_SECONDS, MAX_DRIVER_MB = 60.0, 1000.0

_WHAT = """
`sdxl generate TABLE OUT --plan` as a user types it, from the start of the command to its end: Ray
is started, every row is checked, equal ids are looked for, a few steps are measured. The table is
one parquet file of {num_rows:,} rows with distinct prompts, 8 sizes, 4 step counts, 3 scales,
half of them with the refiner. Memory is of the driver's process, most at any time.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures; ``--rows 10000`` tries the script."""
    parser = argparse.ArgumentParser(prog="benchmarks plan_million", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        table = write_big_table(Path(folder) / "prompts.parquet", options.rows)
        progress(f"table: {table.stat().st_size / 1e6:.0f} MB")
        command = ["generate", str(table), f"{folder}/out", "--plan", *model_arguments(folder)]
        run = run_watched(command)
    plan = json.loads(run.last_line)
    assert plan["num_rows"] == options.rows, plan["num_rows"]
    assert plan["num_invalid"] == 0, plan["num_invalid_by_reason"]
    values: dict[str, Any] = {
        "num_rows": options.rows,
        "seconds": round(run.seconds, 2),
        "driver_peak_mb": round(run.peak_mb, 1),
        "num_kinds": len(plan["work"]),
        "expected_seconds_of_the_job": plan["expected_seconds"],
    }
    write_results(
        "plan_million",
        what=_WHAT.format(num_rows=options.rows),
        values=values,
        tables={"found": [values]},
        targets=[
            Target(name="seconds", found=run.seconds, wanted=MAX_SECONDS, at_most=True),
            Target(name="driver memory, MB", found=run.peak_mb, wanted=MAX_DRIVER_MB, at_most=True),
        ],
        is_trial=options.rows < 1_000_000,
    )


def write_big_table(path: Path, num_rows: int) -> Path:
    """A prompt table with distinct prompts and ids; kinds in random order."""
    rng = np.random.default_rng(0)
    sizes = np.array(SIZES)[rng.integers(len(SIZES), size=num_rows)]
    index = np.arange(num_rows)
    columns = {
        "id": [f"row-{i:08d}" for i in index],
        "prompt": [
            f"a photograph of lighthouse number {i}, at dusk, seen from the sea" for i in index
        ],
        "seed": index,
        "height": sizes[:, 0],
        "width": sizes[:, 1],
        "steps": np.array(STEPS)[rng.integers(len(STEPS), size=num_rows)],
        "guidance_scale": np.array(GUIDANCE_SCALES)[
            rng.integers(len(GUIDANCE_SCALES), size=num_rows)
        ],
        "refiner": rng.integers(2, size=num_rows).astype(bool),
    }
    pq.write_table(pa.table(columns), path)
    return path


if __name__ == "__main__":
    main()
