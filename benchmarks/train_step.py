"""One training step on the CPU beside a loop as diffusers' own SDXL training script has it."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import accelerate
import torch

from benchmarks.harness import Target, interleaved, progress, spread, write_results
from benchmarks.train_sides import (
    Step,
    StepBatch,
    diffusers_step,
    fresh_unet,
    our_step,
    random_batches,
)
from sdxl_core.nets.presets import TINY
from sdxl_core.training.conditions import ConditionDropout
from sdxl_core.training.objective import NoiseDraw
from sdxl_core.training.sample_draws import draw_for_samples
from sdxl_core.training.seeded_objective import Objective

OURS, THEIRS = "ours", "diffusers' loop"
WANTED = 1.0
# Losses of both sides on the same noise, relative: beyond, they would not train the same thing.
MAX_DIFFERENCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

_WHAT = """
The training step of this project in one process beside a loop as
`examples/text_to_image/train_text_to_image_sdxl.py` of diffusers has it (accelerate {accelerate},
its optimizer, its order of work; written anew, no progress bar, no trackers). The `tiny` UNet with
random float32 weights on both sides, {side} x {side} px, batches of {batch}; latents and text
states are given to both. bfloat16 is autocast on both sides, which is what the script's
`--mixed_precision bf16` does. Ours draws noise, timestep and dropout (10 % of the captions) of each
sample from the sample's seed, skips steps that are not finite, and keeps the loss by noise level;
theirs draws a batch at once. No running mean of the weights on either side. {threads} thread(s);
{rounds} rounds of {steps} steps, the sides take turns; a ratio is taken within a round, of {clock}
seconds.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures both precisions; ``--rounds 2 --steps 2`` tries the script."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    clock = "CPU" if options.threads == 1 else "wall"
    batches = random_batches(TINY, options.steps, options.batch)
    found = {name: _compare(options, batches, getattr(torch, name)) for name in options.dtypes}
    rows = [
        {"precision": name, "side": side} | {f"samples/s, {key}": v for key, v in rate.items()}
        for name, values in found.items()
        for side, rate in values["samples_per_s"].items()
    ]
    ratios = [{"precision": name} | values["ratio"] for name, values in found.items()]
    write_results(
        "train_step",
        what=_WHAT.format(
            accelerate=accelerate.__version__,
            side=8 * TINY.unet.sample_size,
            batch=options.batch,
            threads=options.threads,
            rounds=options.rounds,
            steps=options.steps,
            clock=clock,
        ),
        values={"threads": options.threads, "batch": options.batch, "precisions": found},
        tables={"samples per second": rows, "ours / diffusers' loop": ratios},
        targets=[
            Target(
                name=f"{name}: ours / diffusers' loop, samples per second",
                found=values["ratio"]["median"],
                wanted=WANTED,
            )
            for name, values in found.items()
        ],
        is_trial=options.rounds < 5,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks train_step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="fewer than 5 write no results")
    parser.add_argument("--steps", type=int, default=8, help="of each side in a round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of torch; more compare wall time")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    return parser.parse_args(arguments)


def _compare(
    options: argparse.Namespace, batches: Sequence[StepBatch], dtype: torch.dtype
) -> dict[str, Any]:
    difference = largest_difference(batches[:1], dtype)
    progress(f"{dtype}: losses on the same noise differ by {difference:.2g}")
    assert difference <= MAX_DIFFERENCE[dtype], f"the sides train different things: {difference}"
    sides = {
        OURS: our_step(fresh_unet(TINY), Objective(), dtype),
        THEIRS: diffusers_step(fresh_unet(TINY), dtype),
    }
    for step in sides.values():
        _steps(step, batches[:2])  # makes the optimizer's state
    took = interleaved(
        {
            name: [functools.partial(_steps, step, batches)] * options.rounds
            for name, step in sides.items()
        }
    )
    seconds = {
        name: [t.cpu_s if options.threads == 1 else t.wall_s for t in times]
        for name, times in took.items()
    }
    num_samples = len(batches) * options.batch
    pairs = zip(seconds[THEIRS], seconds[OURS], strict=True)
    return {
        "difference_of_losses": difference,
        "samples_per_s": {
            name: spread([num_samples / s for s in times]) for name, times in seconds.items()
        },
        "ratio": spread([theirs / ours for theirs, ours in pairs]),
        "seconds": seconds,
    }


def _steps(step: Step, batches: Sequence[StepBatch]) -> None:
    for batch in batches:
        step(batch)


def largest_difference(batches: Sequence[StepBatch], dtype: torch.dtype) -> float:
    """Largest relative difference of the losses of steps that start from the same weights and have
    the same noise; dropout is off."""
    ours = our_step(fresh_unet(TINY), Objective(dropout=ConditionDropout(text=0.0)), dtype)
    theirs = diffusers_step(fresh_unet(TINY), dtype, draw_of=_our_draw)
    return max(abs(float(ours(batch) / theirs(batch)) - 1) for batch in batches)


def _our_draw(batch: StepBatch) -> NoiseDraw:
    channels, height, width = batch.latents_BCHW.shape[1:]
    return draw_for_samples(batch.seeds, (channels, height, width), offset_noise=0.0)


if __name__ == "__main__":
    main()
