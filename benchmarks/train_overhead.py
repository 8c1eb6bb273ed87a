"""What Ray, DeepSpeed and ingest cost per training step above the bare step, in ms.

Three sides, each with 1, 2 and 4 workers. `bare`: processes side by side, each with its share of
the batch in memory, plain torch around network and optimizer, no word between them. `deepspeed`:
the same as one group under DeepSpeed ZeRO 2. `job`: `sdxl train`, from files, with Ray Train,
ingest, reports and TensorBoard. All encode captions in the step, run the network in bfloat16 with
float32 weights for the optimizer, and keep the running mean. The sides take turns.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.harness import progress, spread, write_results
from benchmarks.jobs_run import run_watched
from benchmarks.train_engines import MasterEngine
from cluster.zero import ZeroEngine, ZeroSettings
from sdxl_core.contract.seeds import sample_seed
from sdxl_core.nets.weights import load_model
from sdxl_core.training.conditions import allow_dropped_numbers
from sdxl_core.training.frozen_parts import freeze
from sdxl_core.training.optimizers import AdamWSettings
from sdxl_core.training.seeded_batches import SampleBatch
from sdxl_core.training.seeded_objective import Objective, losses_of_samples
from tests.cluster.train_group import run_group
from tests.cluster.train_samples import CAPTIONS, write_samples
from tests.micro_models import write_models

SIDES = ("bare", "deepspeed", "job")
# The samples' bucket; the other one of the small dataset is left out.
SIZE_PX, LEFT_OUT = 32, "32x64"
_NUM_WARM_UP = 5
_SKIPPED_REPORTS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all numbers of workers; ``--rounds 1 --workers 1 --steps 20 --trial`` tries it."""
    options = _parse(arguments)
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="overhead-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        samples = write_samples(folder / "samples", model_digest="x", num_parts=20)
        model = options.model
        if model == "micro":
            model = write_models(folder / "models").base
        for number in range(options.rounds):
            for workers in options.workers:
                found: dict[str, Any] = {"workers": workers}
                for side in SIDES if number % 2 == 0 else reversed(SIDES):
                    place = folder / f"{number}-{workers}-{side}"
                    place.mkdir()
                    if side == "job":
                        found |= job_ms(options, samples, model, place, workers)
                    else:
                        found[side] = group_ms(options, model, place, workers, side)
                progress(json.dumps(found))
                rounds.append(found)
    _report(options, rounds)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--report-every", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="global; the workers share it")
    parser.add_argument("--model", default="micro", help="micro, tiny, or a folder")
    parser.add_argument("--timeout", type=float, default=900.0, help="of a job, seconds")
    parser.add_argument("--trial", action="store_true", help="write no results")
    return parser.parse_args(arguments)


def job_ms(
    options: argparse.Namespace, samples: str, model: str, folder: Path, workers: int
) -> dict[str, float]:
    """Milliseconds of a step of a whole job, and of them those that its workers waited for data."""
    steps = max(options.steps, (_SKIPPED_REPORTS + 1) * options.report_every)
    arguments = [
        "train", samples, str(folder / "out"), "--model", model, "--steps", str(steps),
        "--batch", str(options.batch), "--bucket-weights", f"{LEFT_OUT}=0", "--any-latents",
        "--export", "none", "--how.workers", str(workers), "--how.report-every",
        str(options.report_every), "--how.checkpoint-every", str(steps),
    ]  # fmt: skip
    run_watched(arguments, timeout_s=options.timeout)
    text = (folder / "out" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()][_SKIPPED_REPORTS:]
    step_ms = [1e3 * options.batch / line["samples_per_s"] for line in lines]
    wait_ms = [ms * line["data_wait_share"] for ms, line in zip(step_ms, lines, strict=True)]
    return {"job": statistics.median(step_ms), "wait": statistics.median(wait_ms)}


def group_ms(
    options: argparse.Namespace, model: str, folder: Path, workers: int, side: str
) -> float:
    """Milliseconds of a step of processes without Ray: the slowest one's mean over steps."""
    run_group(
        _measure_here,
        world_size=workers,
        folder=folder,
        arguments=(side, model, options.batch // workers, options.steps),
    )
    found: float = json.loads((folder / "step_ms.json").read_text())
    return found


def _measure_here(folder: Path, side: str, model: str, micro_batch: int, num_steps: int) -> None:
    """What each process of a group does; the first one writes what was found."""
    frozen = freeze(
        load_model(model, dtype=torch.bfloat16, components=("text_encoder", "text_encoder_2")),
        device="cpu",
        drops_captions=False,
    )
    network: Any = load_model(model, components=("unet",)).unet
    allow_dropped_numbers(network)
    make: Callable[[Any, int], tuple[Any, Callable[[torch.Tensor], None]]]
    make = _bare if side == "bare" else _deepspeed
    module, update = make(network.train(), micro_batch)
    objective = Objective()
    tables, times_s = objective.tables(), []
    for step in range(_NUM_WARM_UP + num_steps):
        samples = random_samples(step, micro_batch)
        if step == _NUM_WARM_UP:
            dist.barrier()
        started = time.perf_counter()
        losses = losses_of_samples(
            module,
            frozen.batch(samples),
            samples.seeds,
            objective=objective,
            tables=tables,
            text_1_width=frozen.text_1_width,
            network_dtype=torch.bfloat16,
        )
        update(losses.loss_B.mean())
        times_s.append(time.perf_counter() - started)
    slowest = torch.tensor(statistics.fmean(times_s[_NUM_WARM_UP:]))
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        (folder / "step_ms.json").write_text(json.dumps(1e3 * float(slowest)))


def _bare(network: Any, _micro_batch: int) -> tuple[Any, Callable[[torch.Tensor], None]]:
    engine = MasterEngine(nn.Module.to(network, dtype=torch.bfloat16), ema_decay=0.9999)

    def update(loss: torch.Tensor) -> None:
        engine.backward(loss)
        engine.end_pass(is_last=True)

    return engine.module, update


def _deepspeed(network: Any, micro_batch: int) -> tuple[Any, Callable[[torch.Tensor], None]]:
    settings = ZeroSettings(
        stage=2,
        offload_optimizer=False,
        precision="bfloat16",
        micro_batch_size=micro_batch,
        num_accumulated=1,
        max_gradient_norm=1.0,
        learning_rate=1e-5,
        adamw=AdamWSettings(),
        ema_decay=0.9999,
    )
    engine = ZeroEngine(network, settings, device="cpu")

    def update(loss: torch.Tensor) -> None:
        engine.backward_and_step(loss)
        if not engine.was_skipped:
            engine.update_average()

    return engine.module, update


def random_samples(step: int, num_samples: int) -> SampleBatch:
    """What ingest would have delivered."""
    rng = np.random.default_rng([step, dist.get_rank()])
    shape = (num_samples, 8, SIZE_PX // 8, SIZE_PX // 8)
    numbers = {"original": 2 * SIZE_PX, "crop": 0, "target": SIZE_PX}
    size, corner = ("height", "width"), ("top", "left")
    sides = {"original": size, "crop": corner, "target": size}
    return SampleBatch(
        ids=[f"{step}-{place}" for place in range(num_samples)],
        seeds=[sample_seed(step, dist.get_rank(), str(place)) for place in range(num_samples)],
        captions=[CAPTIONS[place % len(CAPTIONS)] for place in range(num_samples)],
        columns={
            f"{kind}_{side}": [float(numbers[kind])] * num_samples
            for kind, names in sides.items()
            for side in names
        },
        moments_BCHW=rng.normal(size=shape).astype(np.float16),
    )


def _report(options: argparse.Namespace, rounds: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for workers in options.workers:
        mine = [found for found in rounds if found["workers"] == workers]
        parts = {
            "bare step": [found["bare"] for found in mine],
            "DeepSpeed on top": [found["deepspeed"] - found["bare"] for found in mine],
            "Ray and ingest on top": [found["job"] - found["deepspeed"] for found in mine],
            "of it waiting for data": [found["wait"] for found in mine],
            "all above the bare step": [found["job"] - found["bare"] for found in mine],
        }
        rows += [
            {"workers": workers, "part": part} | {f"{k} ms": v for k, v in spread(ms).items()}
            for part, ms in parts.items()
        ]
    write_results(
        "train_overhead",
        what=f"{__doc__}\nModel {options.model}, a global batch of {options.batch} samples of "
        f"{SIZE_PX} x {SIZE_PX} px, {options.steps} steps, one thread a worker, {options.rounds} "
        "rounds; wall time, so nothing else may run.",
        values={"settings": vars(options), "rounds": list(rounds)},
        tables={"milliseconds of a step": rows},
        targets=[],
        is_trial=options.trial,
    )


if __name__ == "__main__":
    main()
