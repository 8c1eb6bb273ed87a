"""Full-size SDXL on one accelerator: images per second of the real engine, eager and compiled.

Weights are random; speed and memory do not depend on them. Needs ``sdxl_core`` only, no Ray:

    python -m benchmarks.gpu_generate                                   on a GPU, ~10 minutes
    python -m benchmarks.gpu_generate --preset tiny --device cpu        a try of the script

Every case is written at once, so a run that is cut short keeps what it has.
"""

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.harness import Target, progress, write_results
from sdxl_core.contract.request import Request
from sdxl_core.diffusion.decoding import decode_row
from sdxl_core.diffusion.engine import Engine, unet_network
from sdxl_core.diffusion.refinement import row_task, step_table
from sdxl_core.diffusion.text_stage import RowTexts, TextStage
from sdxl_core.nets.build import build_networks
from sdxl_core.nets.flops import unet_flops
from sdxl_core.nets.model import SdxlModel, model_of
from sdxl_core.nets.presets import ModelKind, ModelPreset, get_preset

PRESETS = {"full": ("sdxl-base", "sdxl-refiner"), "tiny": ("tiny", "tiny-refiner")}

# An H100 can do 3.5 images/s in bf16 by arithmetic; the best published stack does 2.26, in fp8.
WANTED_IMAGES_PER_S = 1.4

_WHAT = """
The real engine around {preset} networks with random weights: {size} x {size} px, {steps} Euler
steps, guidance 5, {dtype}, on {device}. `base` runs all steps of its images; `refiner` runs the
share of the steps that hand-off 0.8 leaves to it. Images/s are of denoising alone; text encoding
and decoding are given apart. The ceiling is the best matrix product measured here:
{ceiling:.4g} TFLOP/s.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One measured setting."""

    network: ModelKind
    is_compiled: bool
    num_slots: int
    num_images: int
    images_per_s: float
    share_of_ceiling: float
    peak_memory_gb: float
    compile_s: float
    warm_up_s: float
    note: str = ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all cases that are asked for."""
    options = _parse(arguments)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    ceiling = matmul_flops_per_s(device, dtype, options.matmul_size)
    progress(f"matrix-product ceiling: {ceiling / 1e12:.4g} TFLOP/s")
    models = {}
    for name in PRESETS[options.preset]:
        preset = get_preset(name)
        models[preset.kind] = model_on(preset, device, dtype)
    size_px = options.size or models["base"].preset.native_size_px
    rows = _rows(max(options.slots), size_px, options.steps)
    apart, texts = _apart(models, rows, options.decodes)
    cases: list[Case] = []
    order = itertools.product(("base", "refiner"), options.modes, options.slots)
    for kind, mode, num_slots in order:
        case = _measure(
            models[kind],
            list(zip(rows, texts, strict=True))[:num_slots],
            is_compiled=mode == "compiled",
            compile_kind=options.compile_kind,
            ceiling=ceiling,
            min_images=options.min_images,
        )
        cases.append(case)
        progress(json.dumps(dataclasses.asdict(case)))
        _write(options, size_px, ceiling, apart, cases, is_shown=False)
    _write(options, size_px, ceiling, apart, cases, is_shown=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks gpu_generate", description=__doc__)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--size", type=int, default=0, help="px; 0 is the model's own")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument(
        "--compile-kind",
        choices=("regional", "full"),
        default="regional",
        help="compile the repeated transformer blocks (fast to build) or the whole UNet",
    )
    parser.add_argument("--min-images", type=int, default=4, help="least images of a case")
    parser.add_argument("--decodes", type=int, default=4, help="pictures to decode, one a call")
    parser.add_argument("--matmul-size", type=int, default=8192)
    parser.add_argument("--out", default="", help="name of the results; default by preset, device")
    return parser.parse_args(arguments)


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Best rate of a square matrix product: what the networks' arithmetic could reach here."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right
    best_s = float("inf")
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        for _ in range(4):
            left @ right
        _wait(device)
        best_s = min(best_s, (time.perf_counter() - started) / 4)
    return 2 * float(size) ** 3 / best_s


def model_on(preset: ModelPreset, device: torch.device, dtype: torch.dtype) -> SdxlModel:
    """A model with random weights that is built where it runs, in the precision that it runs in.

    The autoencoder is float32 where ``dtype`` would overflow in it.
    """
    started = time.perf_counter()
    with torch.device("meta"):
        networks = build_networks(preset)
    for name, network in networks.items():
        nn.Module.to(network, dtype=torch.float32 if _overflows(name, dtype) else dtype)
        network.to_empty(device=device)
        _fill_at_random(network)
    _wait(device)
    progress(f"{preset.name}: built in {time.perf_counter() - started:.1f} s")
    return model_of(preset, networks)


def _overflows(name: str, dtype: torch.dtype) -> bool:
    return name == "vae" and dtype == torch.float16


@torch.no_grad()
def _fill_at_random(network: nn.Module) -> None:
    """Weights of a size that keeps activations finite through all layers."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            parameter.normal_(std=0.5 * parameter[0].numel() ** -0.5)
    for name, buffer in network.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
        elif name == "attn_mask":
            buffer.copy_(torch.full(buffer.shape, float("-inf")).triu(1))


def _rows(num_rows: int, size_px: int, steps: int) -> list[Request]:
    return [
        Request(
            id=str(index),
            prompt=f"photograph number {index} of a lighthouse at dusk",
            seed=index,
            height=size_px,
            width=size_px,
            steps=steps,
            refiner=True,
        )
        for index in range(num_rows)
    ]


def _apart(
    models: dict[ModelKind, SdxlModel], rows: Sequence[Request], num_decodes: int
) -> tuple[dict[str, float], list[RowTexts]]:
    """Seconds of the stages around denoising, and the rows' text states."""
    device = models["base"].unet.device
    TextStage(models).encode(rows[:1])
    started = time.perf_counter()
    texts = TextStage(models).encode(rows)
    _wait(device)
    encoded = time.perf_counter()
    latents_CHW = torch.randn(4, rows[0].height // 8, rows[0].width // 8)
    decode_row(models["base"], latents_CHW, device=device)
    decoding = time.perf_counter()
    for _ in range(num_decodes):
        decode_row(models["base"], latents_CHW, device=device)
    done = time.perf_counter()
    apart = {
        "encode_s_per_image": (encoded - started) / len(rows),
        "decode_s_per_image": (done - decoding) / num_decodes,
    }
    progress(json.dumps(apart))
    return apart, texts


def _measure(
    model: SdxlModel,
    rows: Sequence[tuple[Request, RowTexts]],
    *,
    is_compiled: bool,
    compile_kind: str,
    ceiling: float,
    min_images: int,
) -> Case:
    """Images per second with as many slots as rows, all of them used all the time."""
    device, num_slots = model.unet.device, len(rows)
    _reset_peak(device)
    unet = model.unet
    if is_compiled:
        torch._dynamo.reset()
        if compile_kind == "regional":
            unet.compile_repeated_blocks(fullgraph=True)
        else:
            unet = torch.compile(unet)
    # Two short warm-ups: the first builds, the second shows what it would cost without.
    first_s, warm_up_s = (_seconds(model, unet, rows, num_rounds=1, steps=2)[0] for _ in range(2))
    num_rounds = -(-min_images // num_slots)
    seconds, note = _seconds(model, unet, rows, num_rounds=num_rounds)
    num_images = num_rounds * num_slots
    row = dataclasses.replace(rows[0][0], refiner=model.kind == "refiner")
    num_calls = 2 * step_table(row, model).num_evaluations
    flops = num_calls * unet_flops(model.preset, row.height, row.width)
    if is_compiled and compile_kind == "regional":
        _forget_compiled(model.unet)
    return Case(
        network=model.kind,
        is_compiled=is_compiled,
        num_slots=num_slots,
        num_images=num_images,
        images_per_s=round(num_images / seconds, 4),
        share_of_ceiling=round(num_images * flops / seconds / ceiling, 4),
        peak_memory_gb=round(_peak_gb(device), 2),
        compile_s=round(max(0.0, first_s - warm_up_s), 2) if is_compiled else 0.0,
        warm_up_s=round(first_s, 2),
        note=note,
    )


def _seconds(
    model: SdxlModel,
    unet: Any,
    rows: Sequence[tuple[Request, RowTexts]],
    *,
    num_rounds: int,
    steps: int | None = None,
) -> tuple[float, str]:
    """Wall time of the engine over all rows, and a note if it had to shrink for memory."""
    engine = Engine(
        unet_network(unet), slots_for=len(rows), device=model.unet.device, dtype=model.unet.dtype
    )
    tasks = []
    for number in range(num_rounds):
        for row, texts in rows:
            kept = {"steps": row.steps, "handoff": row.handoff}
            asked = kept if steps is None else {"steps": steps, "handoff": 0.5}
            part = dataclasses.replace(row, refiner=model.kind == "refiner", **asked)
            task = row_task(part, model, texts[model.kind], latents_CHW=_zeros(rows))
            tasks.append(dataclasses.replace(task, key=f"{number}-{row.id}"))
    _wait(model.unet.device)
    started = time.perf_counter()
    engine.run(tasks)
    _wait(model.unet.device)
    note = "; ".join(f"slots {s.num_slots_before} -> {s.num_slots_after}" for s in engine.shrinks)
    return time.perf_counter() - started, note


def _zeros(rows: Sequence[tuple[Request, RowTexts]]) -> torch.Tensor:
    return torch.zeros(4, rows[0][0].height // 8, rows[0][0].width // 8)


def _forget_compiled(unet: nn.Module) -> None:
    for module in unet.modules():
        module._compiled_call_impl = None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gb(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def _write(
    options: argparse.Namespace,
    size_px: int,
    ceiling: float,
    apart: dict[str, float],
    cases: Sequence[Case],
    *,
    is_shown: bool,
) -> None:
    best = max((case.images_per_s for case in cases if case.network == "base"), default=0.0)
    targets = []
    if options.preset == "full":
        targets = [
            Target(name="base, best images per second", found=best, wanted=WANTED_IMAGES_PER_S)
        ]
    shown = [dataclasses.asdict(case) for case in cases]
    name = options.out or f"gpu_generate_{options.preset}_{options.device.partition(':')[0]}"
    write_results(
        name,
        what=_WHAT.format(
            preset=options.preset,
            size=size_px,
            steps=options.steps,
            dtype=options.dtype,
            device=options.device,
            ceiling=ceiling / 1e12,
        ),
        values={"ceiling_flops_per_s": ceiling, "apart": apart, "cases": shown},
        tables={"denoising": shown, "apart, seconds per image": [apart]},
        targets=targets,
        device=options.device,
        is_shown=is_shown,
    )


if __name__ == "__main__":
    main()
