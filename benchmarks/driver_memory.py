"""Memory of generate's driver over the number of rows: it must not grow with the table."""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Target, progress, write_results
from benchmarks.jobs_run import run_watched
from benchmarks.models import MICRO, export_random
from benchmarks.rows import prompt_text

MAX_GROWTH = 1.1
ROWS_PER_PART = 256

_WHAT = """
`sdxl generate TABLE OUT --format dry` as a user types it, with a base of {num_weights:,} UNet
weights, 1 step, no guidance, 64 x 64 px, so that the job around the networks is what works. Memory
is of the driver's process, sampled four times a second; `half` is the median over the second half
of the run. Parts of {rows_per_part} rows.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures; ``--rows 200 400`` tries the script."""
    parser = argparse.ArgumentParser(prog="benchmarks driver_memory", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    options = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = export_random(MICRO, Path(folder) / "micro")
        for num_rows in options.rows:
            found.append(_run(Path(folder), model, num_rows))
            progress(json.dumps(found[-1]))
    growth = found[-1]["peak_mb"] / found[0]["peak_mb"]
    write_results(
        "driver_memory",
        what=_WHAT.format(num_weights=_num_unet_weights(), rows_per_part=ROWS_PER_PART),
        values={"runs": found},
        tables={"driver": found},
        targets=[
            Target(
                name=f"peak at {options.rows[-1]:,} rows / peak at {options.rows[0]:,}",
                found=growth,
                wanted=MAX_GROWTH,
                at_most=True,
            )
        ],
        is_trial=max(options.rows) < 100_000,
    )


def _run(folder: Path, model: Path, num_rows: int) -> dict[str, Any]:
    table = folder / f"prompts-{num_rows}.parquet"
    columns = {
        "id": [f"row-{index:08d}" for index in range(num_rows)],
        # Few distinct prompts: encoding is done once each, and is not what is measured.
        "prompt": [prompt_text(index % 48) for index in range(num_rows)],
    }
    pq.write_table(pa.table(columns), table)
    what = "--defaults.steps 1 --defaults.guidance-scale 1 --defaults.height 64 --defaults.width 64"
    flags = f"--refiner none --format dry --slots 64 --rows-per-part {ROWS_PER_PART} {what}"
    out = folder / f"out-{num_rows}"
    run = run_watched(["generate", str(table), str(out), "--model", str(model), *flags.split()])
    summary = json.loads(run.last_line)
    assert (summary["num_rows"], summary["num_failed"]) == (num_rows, 0), summary
    second_half = [mb for second, mb in run.samples if second > run.seconds / 2]
    return {
        "rows": num_rows,
        "seconds": round(run.seconds, 1),
        "rows_per_s": round(num_rows / run.seconds, 1),
        "peak_mb": round(run.peak_mb, 1),
        "half_mb": round(statistics.median(second_half), 1),
    }


def _num_unet_weights() -> int:
    from torch import device

    from sdxl_core.nets.build import build_unet

    with device("meta"):
        return sum(parameter.numel() for parameter in build_unet(MICRO).parameters())


if __name__ == "__main__":
    main()
