"""How often the embedded model draws what a prompt says, by the scene checker, on held-out prompts.

    python -m benchmarks.embedded_model [--share 0.1]

500 prompts that were never trained on (200 one-object, 200 two-object with a relation, 100 counts)
are drawn by the base alone and by base and refiner (hand-off 0.8), 25 Euler steps, guidance 5, and
judged from their pixels. Writes ``benchmarks/results/embedded_model.json`` and ``.md``.
"""

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sdxl_core.contract.request import Request
from sdxl_core.data.scene_captions import Description, describe
from sdxl_core.diffusion.generate import generate
from sdxl_core.nets.weights import load_model
from sdxl_core.training.scene_evaluation import (
    EVALUATION_COUNTS,
    EVALUATION_SEED,
    held_out_descriptions,
    judge,
)

RESULTS = Path(__file__).parent / "results"
STEPS = 25
GUIDANCE = 5.0
FIRST_SEED = 10_000


def draw_all(
    descriptions: list[Description], *, use_refiner: bool, slots: int
) -> tuple[list[Any], float]:
    """Draws every description at 128 x 128 px; returns the pictures and the seconds it took."""
    model, refiner = load_model("tiny"), load_model("tiny-refiner")
    requests = [
        Request(
            id=str(i),
            prompt=describe(description),
            seed=FIRST_SEED + i,
            height=128,
            width=128,
            steps=STEPS,
            guidance_scale=GUIDANCE,
            refiner=use_refiner,
        )
        for i, description in enumerate(descriptions)
    ]
    start_s = time.monotonic()
    pictures = []
    for image in generate(requests, model=model, refiner=refiner, slots=slots):
        if image.error is not None:
            raise image.error
        pictures.append(image.rgb_HWC)
    return pictures, time.monotonic() - start_s


def measure(descriptions: list[Description], *, use_refiner: bool, slots: int) -> dict[str, Any]:
    """Draws and judges; returns a JSON-ready result."""
    pictures, seconds = draw_all(descriptions, use_refiner=use_refiner, slots=slots)
    scores, _ = judge(descriptions, pictures)
    return {
        "refiner": use_refiner,
        "seconds": round(seconds, 1),
        "kinds": {
            kind: {**dataclasses.asdict(score), "accuracy": round(score.accuracy, 4)}
            for kind, score in scores.items()
        },
    }


def to_markdown(result: dict[str, Any]) -> str:
    """Returns the result as a page."""
    lines = [
        "# The embedded model on held-out prompts",
        "",
        "Share of pictures in which the scene checker finds all that the prompt says (shapes,",
        "colours, sizes, count, place, relation, background) and nothing more. "
        f"{result['steps']} Euler steps, guidance {result['guidance']:g}, 128 x 128 px.",
        "",
        "| prompts | base | base + refiner | most frequent faults of the base |",
        "| --- | --- | --- | --- |",
    ]
    base, refined = result["runs"]
    for kind, score in base["kinds"].items():
        faults = sorted(score["num_wrong"].items(), key=lambda item: -item[1])[:4]
        words = ", ".join(f"{name} {number}" for name, number in faults)
        both = refined["kinds"][kind]
        lines.append(
            f"| {kind} ({score['num_pictures']}) | {score['accuracy']:.1%} | "
            f"{both['accuracy']:.1%} | {words} |"
        )
    lines += ["", f"Command: `{result['command']}`. Machine: {result['machine']}.", ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes both result files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="share of the 500 prompts")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "embedded_model")
    arguments = parser.parse_args(argv)
    counts = {kind: round(n * arguments.share) for kind, n in EVALUATION_COUNTS.items()}
    descriptions = held_out_descriptions(counts)
    result = {
        "prompts_seed": EVALUATION_SEED,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "command": "python -m benchmarks.embedded_model",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "model_digest": load_model("tiny").digest,
        "runs": [
            measure(descriptions, use_refiner=use_refiner, slots=arguments.slots)
            for use_refiner in (False, True)
        ],
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    arguments.out.with_suffix(".md").write_text(to_markdown(result))


if __name__ == "__main__":
    main()
