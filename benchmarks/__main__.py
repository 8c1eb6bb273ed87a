"""Runs benchmarks: ``python -m benchmarks [NAMES]``; all but the GPU's if none is named.

Results go to ``benchmarks/results``. One benchmark's own options: ``python -m benchmarks.NAME -h``.
"""

import argparse
import importlib
import sys

NAMES = (
    "embedded_model",
    "engine_vs_diffusers",
    "job_vs_engine",
    "plan_million",
    "plan_batches",
    "driver_memory",
    "kill_and_resume",
    "prepare_pictures",
    "prepare_job",
    "read_samples",
    "train_step",
    "train_overhead",
    "resume_seconds",
    "gpu_generate",
    "gpu_train",
)
BY_DEFAULT = tuple(name for name in NAMES if not name.startswith("gpu_"))


def main() -> int:
    """Runs the benchmarks that are named, one after another."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=(*NAMES, []), default=list(BY_DEFAULT))
    for name in parser.parse_args().names:
        print(f"== {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main([])
    return 0


if __name__ == "__main__":
    sys.exit(main())
