"""The bare engine beside diffusers' pipelines: one kind of row, and many kinds mixed."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import (
    Target,
    interleaved,
    progress,
    seconds_of,
    spread,
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
SWEEP_ROWS = 32

# Below this the two sides would not be doing the same work, and their times mean nothing.
MIN_COSINE = 0.98

_WHAT = """
The engine beside diffusers' own pipelines, around the same UNet objects, in {dtype} on {threads}
threads, weights: {weights}. Both sides get text states that were encoded before and stop at
latents: neither text encoding nor decoding is in the times of either side. The sides take turns;
a ratio is taken within a round. diffusers gets the batch size that was best in a sweep over
{sizes}; in the mixed table it runs group by group (equal size, steps, guidance, refiner), a
whole group a call.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures both tables; ``--rows 24`` tries the script."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    models, weights = embedded_models(getattr(torch, options.dtype))
    pipelines = diffusers_pipelines(models)
    only_base: Models = {"base": models["base"]}
    found: dict[str, Any] = {}
    if "homogeneous" in options.tables:
        rows = homogeneous_rows(options.rows)
        best, sweep = _best_batch_size(pipelines, only_base, rows[:SWEEP_ROWS])
        found["homogeneous"] = _compare(
            only_base, pipelines, rows, slots=options.slots, batch_size=best, rounds=options.rounds
        ) | {"diffusers_batch_size": best, "diffusers_sweep_images_per_s": sweep}
    if "mixed" in options.tables:
        rows = mixed_rows(options.rows)
        found["mixed"] = _compare(
            models,
            pipelines,
            rows,
            slots=options.slots,
            batch_size=max(BATCH_SIZES),
            rounds=options.rounds,
        )
    wanted = {"homogeneous": 1.0, "mixed": 3.0}
    targets = [
        Target(
            name=f"{name}: engine / diffusers, images per second",
            found=found[name]["ratio"]["median"],
            wanted=wanted[name],
        )
        for name in found
    ]
    write_results(
        "engine_vs_diffusers",
        what=_WHAT.format(
            dtype=options.dtype, threads=options.threads, weights=weights, sizes=BATCH_SIZES
        ),
        values={"threads": options.threads, "dtype": options.dtype, "tables": found},
        tables=_shown(found),
        targets=targets,
        is_trial=options.rows < 256,
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks engine_vs_diffusers", description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--tables", nargs="+", default=["homogeneous", "mixed"])
    return parser.parse_args(arguments)


def _best_batch_size(
    pipelines: Pipelines, models: Models, rows: Sequence[Request]
) -> tuple[int, dict[str, float]]:
    """diffusers' best batch size on some rows, and images per second of each."""
    texts = encode_texts(models, rows)
    run_diffusers(pipelines, rows[:1], texts[:1], batch_size=1)
    rates: dict[int, float] = {}
    for _ in range(2):
        for size in BATCH_SIZES:
            seconds = seconds_of(
                lambda size=size: run_diffusers(pipelines, rows, texts, batch_size=size)
            )
            rates[size] = max(rates.get(size, 0.0), len(rows) / seconds)
            progress(f"diffusers, batch size {size}: {len(rows) / seconds:.2f} images/s")
    return max(rates, key=rates.__getitem__), {str(k): round(v, 3) for k, v in rates.items()}


def _compare(
    models: Models,
    pipelines: Pipelines,
    rows: Sequence[Request],
    *,
    slots: int,
    batch_size: int,
    rounds: int,
) -> dict[str, Any]:
    texts = encode_texts(models, rows)
    utilisation: dict[str, float] = {}

    def engine() -> None:
        utilisation.update(run_engine(models, rows, texts, slots=slots)[1])

    agreement = _agreement(models, pipelines, rows, slots=slots)
    seconds = interleaved(
        {
            "engine": engine,
            "diffusers": lambda: run_diffusers(pipelines, rows, texts, batch_size=batch_size),
        },
        num_rounds=rounds,
    )
    pairs = zip(seconds["diffusers"], seconds["engine"], strict=True)
    return {
        "num_rows": len(rows),
        "num_kinds": len({(r.height, r.width, r.steps, r.guidance_scale, r.refiner) for r in rows}),
        "slots": slots,
        "utilisation": utilisation,
        "least_cosine_of_latents": agreement,
        "seconds": {side: [round(s, 3) for s in times] for side, times in seconds.items()},
        "images_per_s": {
            side: spread([len(rows) / s for s in times]) for side, times in seconds.items()
        },
        "ratio": spread([theirs / ours for theirs, ours in pairs]),
    }


def _agreement(
    models: Models, pipelines: Pipelines, rows: Sequence[Request], *, slots: int
) -> float:
    """Least cosine between both sides' latents of some rows that start from the same noise."""
    some = rows[:4]
    texts = encode_texts(models, some)
    noise = {row.id: _noise(row) for row in some}
    ours, _ = run_engine(models, some, texts, slots=min(slots, 4))
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
