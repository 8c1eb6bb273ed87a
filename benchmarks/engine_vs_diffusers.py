"""The bare engine beside diffusers' pipelines: one kind of row, and many kinds mixed."""

import argparse
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import (
    Target,
    Took,
    interleaved,
    progress,
    spread,
    time_of,
    write_results,
)
from benchmarks.rows import homogeneous_rows, mixed_rows
from benchmarks.sides import (
    Models,
    Pipelines,
    diffusers_pipelines,
    embedded_models,
    encode_texts,
    run_diffusers,
    run_engine,
)
from sdxl_core.contract.request import Request

BATCH_SIZES = (1, 4, 8, 16, 32)
SWEEP_ROWS, SWEEP_STEPS = 32, 3
WANTED = {"homogeneous": 1.0, "mixed": 3.0}

# Below this the two sides would not be doing the same work, and their times mean nothing.
MIN_COSINE = 0.98

_WHAT = """
The engine beside diffusers' own pipelines, around the same UNet objects, in {dtype} on {threads}
thread(s), weights: {weights}. Both sides get text states that were encoded before and stop at
latents: neither text encoding nor decoding is in the times of either side. The sides take turns,
{chunks} at the one-kind table (equal chunks of it); a ratio is taken within a round, of {clock}
seconds. diffusers gets the batch size that was best in a sweep over {sizes}; in the mixed table it
runs group by group (equal size, steps, guidance, refiner), a whole group a call.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures both tables; ``--rows 24`` tries the script."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    models, weights = embedded_models(getattr(torch, options.dtype))
    pipelines = diffusers_pipelines(models)
    clock = "CPU" if options.threads == 1 else "wall"
    found: dict[str, Any] = {}
    if "homogeneous" in options.tables:
        only_base: Models = {"base": models["base"]}
        best, sweep = _best_batch_size(pipelines, only_base, clock=clock)
        rows = homogeneous_rows(options.homogeneous_rows or options.rows)
        size = -(-len(rows) // options.chunks)
        chunks = [rows[first : first + size] for first in range(0, len(rows), size)]
        found["homogeneous"] = _compare(
            only_base, pipelines, chunks, slots=options.slots, batch_size=best, clock=clock
        ) | {"diffusers_batch_size": best, "diffusers_sweep_images_per_s": sweep}
        _write(options, found, weights, clock)
    if "mixed" in options.tables:
        tables = [mixed_rows(options.rows)] * options.rounds
        found["mixed"] = _compare(
            models,
            pipelines,
            tables,
            slots=options.mixed_slots,
            batch_size=max(BATCH_SIZES),
            clock=clock,
        )
        _write(options, found, weights, clock)


def _write(options: argparse.Namespace, found: Mapping[str, Any], weights: str, clock: str) -> None:
    write_results(
        options.out,
        what=_WHAT.format(
            dtype=options.dtype,
            threads=options.threads,
            weights=weights,
            chunks=options.chunks,
            clock=clock,
            sizes=BATCH_SIZES,
        ),
        values={"threads": options.threads, "dtype": options.dtype, "tables": found},
        tables=_shown(found),
        targets=[
            Target(
                name=f"{name}: engine / diffusers, images per second",
                found=found[name]["ratio"]["median"],
                wanted=WANTED[name],
            )
            for name in found
        ],
        is_trial=options.rows < 256,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks engine_vs_diffusers", description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--homogeneous-rows", type=int, default=0, help="0: as many as --rows")
    parser.add_argument("--chunks", type=int, default=4, help="rounds of the one-kind table")
    parser.add_argument("--rounds", type=int, default=1, help="of the mixed table")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--mixed-slots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of torch; more compare wall time")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--tables", nargs="+", default=["homogeneous", "mixed"])
    parser.add_argument("--out", default="engine_vs_diffusers", help="name of the results")
    return parser.parse_args(arguments)


def _best_batch_size(
    pipelines: Pipelines, models: Models, *, clock: str
) -> tuple[int, dict[str, float]]:
    """diffusers' best batch size on some rows of few steps, and images per second of each."""
    rows = homogeneous_rows(SWEEP_ROWS, steps=SWEEP_STEPS)
    texts = encode_texts(models, rows)
    run_diffusers(pipelines, rows[:1], texts[:1], batch_size=1)
    rates: dict[int, float] = {}
    for size in BATCH_SIZES:
        took = time_of(lambda size=size: run_diffusers(pipelines, rows, texts, batch_size=size))
        rates[size] = len(rows) / _seconds(took, clock)
        progress(f"diffusers, batch size {size}: {took}")
    return max(rates, key=rates.__getitem__), {str(k): round(v, 3) for k, v in rates.items()}


def _compare(
    models: Models,
    pipelines: Pipelines,
    rounds: Sequence[Sequence[Request]],
    *,
    slots: int,
    batch_size: int,
    clock: str,
) -> dict[str, Any]:
    """Both sides over the rows of every round."""
    utilisation: dict[str, float] = {}
    texts = [encode_texts(models, rows) for rows in rounds]

    def engine(index: int) -> None:
        found = run_engine(models, rounds[index], texts[index], slots=slots)[1]
        utilisation.update(found)

    def peer(index: int) -> None:
        run_diffusers(pipelines, rounds[index], texts[index], batch_size=batch_size)

    agreement = _agreement(models, pipelines, rounds[0])
    indices = range(len(rounds))
    took = interleaved(
        {
            "engine": [functools.partial(engine, index) for index in indices],
            "diffusers": [functools.partial(peer, index) for index in indices],
        }
    )
    seconds = {side: [_seconds(t, clock) for t in times] for side, times in took.items()}
    pairs = zip(seconds["diffusers"], seconds["engine"], strict=True)
    rows = {row.id: row for rows in rounds for row in rows}.values()
    kinds = {(r.height, r.width, r.steps, r.guidance_scale, r.refiner) for r in rows}
    return {
        "num_rows": len(rows),
        "num_kinds": len(kinds),
        "slots": slots,
        "utilisation": utilisation,
        "least_cosine_of_latents": agreement,
        "times": {side: [dataclasses.asdict(t) for t in times] for side, times in took.items()},
        "images_per_s": {
            side: spread([len(r) / s for r, s in zip(rounds, times, strict=True)])
            for side, times in seconds.items()
        },
        "ratio": spread([theirs / ours for theirs, ours in pairs]),
    }


def _seconds(took: Took, clock: str) -> float:
    return took.cpu_s if clock == "CPU" else took.wall_s


def _agreement(models: Models, pipelines: Pipelines, rows: Sequence[Request]) -> float:
    """Least cosine between both sides' latents of some rows that start from the same noise."""
    some = rows[:2]
    texts = encode_texts(models, some)
    noise = {row.id: _noise(row) for row in some}
    ours, _ = run_engine(models, some, texts, slots=1)
    theirs = run_diffusers(pipelines, some, texts, batch_size=1, noise=noise)
    cosines = [
        float(
            torch.cosine_similarity(
                ours[row.id].latents_CHW.flatten(), theirs[row.id].float().flatten(), dim=0
            )
        )
        for row in some
    ]
    progress(f"cosine between both sides' latents: {min(cosines):.5f}")
    assert min(cosines) >= MIN_COSINE, f"the sides make different pictures: {cosines}"
    return round(min(cosines), 5)


def _noise(row: Request) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(row.seed)
    return torch.randn((1, 4, row.height // 8, row.width // 8), generator=generator)[0]


def _shown(found: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    shown: dict[str, list[dict[str, Any]]] = {}
    for name, values in found.items():
        shown[f"{name}: {values['num_rows']} rows of {values['num_kinds']} kinds"] = [
            {"side": side} | {f"{key} images/s": rate for key, rate in rates.items()}
            for side, rates in values["images_per_s"].items()
        ] + [{"side": "ratio"} | {f"{k} images/s": v for k, v in values["ratio"].items()}]
    sweep = found.get("homogeneous", {}).get("diffusers_sweep_images_per_s", {})
    if sweep:
        shown["diffusers by batch size"] = [
            {"batch size": size, "images/s": rate} for size, rate in sweep.items()
        ]
    return shown


if __name__ == "__main__":
    main()
