"""Training the full-size base UNet on one accelerator: samples per second, MFU and memory.

Weights are random; speed and memory do not depend on them. Needs ``sdxl_core`` and, for its last
case, deepspeed; no Ray:

    python -m benchmarks.gpu_train                                      on a GPU, ~15 minutes
    python -m benchmarks.gpu_train --modes compiled --micro-batches 8 4      the best ones, ~5
    python -m benchmarks.gpu_train --preset tiny --device cpu           a try of the script

Every case is written at once, so a run that is cut short keeps what it has.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_generate import matmul_flops_per_s
from benchmarks.gpu_train_cases import ATTENTION, Case, Setting, free, measure_if_it_fits, wait
from benchmarks.harness import Target, progress, write_results
from benchmarks.train_engines import DeepSpeedEngine, MasterEngine
from sdxl_core.nets.presets import get_preset
from sdxl_core.nets.unet import build_unet
from sdxl_core.training.conditions import allow_dropped_numbers
from sdxl_core.training.memory_layout import use_channels_last_activations
from sdxl_core.training.seeded_objective import Objective

WANTED_MFU = 0.4
# Dense bfloat16 peaks of the vendor's data sheets, FLOP/s.
_PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
# Blocks that are compiled one by one: nearly all of the work, and one compilation serves all blocks
# of a shape, where the whole network takes many minutes. Norm, activation and residual around the
# matrix products become one kernel each, and what they are cheap to compute again from is not kept.
_COMPILED = ("ResnetBlock2D", "BasicTransformerBlock")

_WHAT = """
Training steps of the {preset} UNet with random weights on {device}: latents of {size} x {size} px,
{dtype} network, {layout}, float32 weights, gradients and moments for the optimizer (fused AdamW),
clipping, the seeded objective with its draws on the host; {mean}. A step is
{samples} samples per device in as many passes as the micro-batch asks for (2048 over 64 devices is
32). MFU counts 3 x the forward's exact operations, never what is computed again, over {peak:.4g}
TFLOP/s; `mfu of passes` leaves the optimizer's time out, which ZeRO divides by the number of
devices. `checkpointed` is the share of the blocks that compute their activations again: the
smallest of {shares} that fits, and all. `master` is plain torch; `deepspeed` is DeepSpeed ZeRO
{stage} as the product uses it, at the best setting of `master`. The best matrix product measured
here: {ceiling:.4g} TFLOP/s.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all cases that are asked for."""
    options = _parse(arguments)
    # Cases of many sizes in one process: freed memory of one must be of use to the next.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    setting = _setting(options)
    cases: list[Case] = []
    for mode in options.modes:
        network = _network(setting, is_compiled=mode == "compiled")
        engine = MasterEngine(network, ema_decay=0.9999 if options.ema else None)
        for micro_batch in options.micro_batches:
            for case in _cases(setting, engine, network, mode == "compiled", micro_batch):
                cases.append(case)
                _write(setting, cases, is_shown=False)
        engine.close()
        del engine, network
        free(setting.device)
    if options.zero_stage and (best := _best(cases)) is not None:
        cases.append(_deepspeed_case(setting, best))
    _write(setting, cases, is_shown=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks gpu_train", description=__doc__)
    parser.add_argument("--preset", default="sdxl-base", help="of the networks: sdxl-base, tiny ..")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--size", type=int, default=0, help="px; 0 is the model's own")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[8, 4, 2, 1])
    parser.add_argument("--modes", nargs="+", default=["compiled", "eager"])
    parser.add_argument("--compile-kind", choices=("regional", "full"), default="regional")
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[0.0, 0.25, 0.5, 0.75, 1.0],
        help="of the blocks that are checkpointed; the smallest that fits, and the largest",
    )
    parser.add_argument("--samples", type=int, default=32, help="of a step")
    parser.add_argument("--steps", type=int, default=3, help="measured, after one to warm up")
    parser.add_argument(
        "--layout", choices=("channels_last", "contiguous"), default="channels_last"
    )
    parser.add_argument("--attention", choices=("auto", *ATTENTION), default="auto")
    parser.add_argument("--ema", action="store_true", help="with a running mean of the weights")
    parser.add_argument("--zero-stage", type=int, default=2, help="of the last case; 0: none")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="0: by the device's name")
    parser.add_argument("--matmul-size", type=int, default=8192)
    parser.add_argument("--out", default="", help="name of the results; default by preset, device")
    return parser.parse_args(arguments)


def _setting(options: argparse.Namespace) -> Setting:
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True  # shapes stay the same: let it look for the best kernel
    torch._dynamo.config.recompile_limit = 64  # one block's code, many shapes
    preset = get_preset(options.preset)
    ceiling = matmul_flops_per_s(device, dtype, options.matmul_size)
    progress(f"matrix-product ceiling: {ceiling / 1e12:.4g} TFLOP/s")
    objective = Objective()
    return Setting(
        options=options,
        preset=preset,
        device=device,
        dtype=dtype,
        size_px=options.size or preset.native_size_px,
        ceiling=ceiling,
        peak=1e12 * options.peak_tflops or _peak(device) or ceiling,
        objective=objective,
        tables=objective.tables(device),
    )


def _peak(device: torch.device) -> float:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in _PEAKS.items() if part in name), 0.0)


def _network(setting: Setting, *, is_compiled: bool, dtype: torch.dtype | None = None) -> Any:
    """The UNet with the initial weights of a fresh one, made where it runs."""
    started, options = time.perf_counter(), setting.options
    with setting.device:
        network: Any = build_unet(setting.preset)
    nn.Module.to(network, dtype=dtype or setting.dtype)
    if options.layout == "channels_last":  # the layout of the convolutions' fast kernels
        use_channels_last_activations(network)
        if dtype is None:  # DeepSpeed cannot broadcast weights that are laid out so
            network.to(memory_format=torch.channels_last)
    allow_dropped_numbers(network)
    if is_compiled:
        if options.compile_kind == "full":
            network.compile(dynamic=False)
        else:
            for module in network.modules():
                if type(module).__name__ in _COMPILED:
                    module.compile(dynamic=False)
    wait(setting.device)
    progress(f"{setting.preset.name}: built in {time.perf_counter() - started:.1f} s")
    return network.train()


def _cases(
    setting: Setting, engine: MasterEngine, network: nn.Module, is_compiled: bool, micro_batch: int
) -> Iterator[Case]:
    """The smallest share of checkpointed blocks that fits, and all of them."""
    if is_compiled:  # for these shapes anew: old ones would be looked through at every call
        torch._dynamo.reset()
    shares = sorted(setting.options.shares)
    has_fit = False
    engine.num_passes = max(1, setting.options.samples // micro_batch)
    for share in shares:
        if has_fit and share < shares[-1]:
            continue
        case = Case(
            engine="master",
            is_compiled=is_compiled,
            micro_batch=micro_batch,
            checkpointed=share,
            num_passes=engine.num_passes,
        )
        measured = measure_if_it_fits(setting, engine, network, case)
        has_fit = has_fit or not measured.note
        yield measured


def _best(cases: Sequence[Case]) -> Case | None:
    return max((case for case in cases if not case.note), key=lambda c: c.mfu, default=None)


def _deepspeed_case(setting: Setting, best: Case) -> Case:
    network = _network(setting, is_compiled=best.is_compiled, dtype=torch.float32)
    engine = DeepSpeedEngine(
        network,
        micro_batch=best.micro_batch,
        num_passes=best.num_passes,
        stage=setting.options.zero_stage,
    )
    for share in sorted({best.checkpointed, *setting.options.shares}):
        case = dataclasses.replace(best, engine="deepspeed", checkpointed=share)
        if share >= best.checkpointed:
            case = measure_if_it_fits(setting, engine, network, case)
            if not case.note:
                break
    return case


def _write(setting: Setting, cases: Sequence[Case], *, is_shown: bool) -> None:
    options, targets = setting.options, []
    best = _best(cases)
    if options.preset == "sdxl-base" and setting.device.type == "cuda" and best is not None:
        targets = [Target(name="best MFU of a step", found=best.mfu, wanted=WANTED_MFU)]
    shown = [dataclasses.asdict(case) for case in cases]
    write_results(
        options.out or f"gpu_train_{options.preset}_{options.device.partition(':')[0]}",
        what=_WHAT.format(
            preset=options.preset,
            device=options.device,
            size=setting.size_px,
            dtype=options.dtype,
            layout=options.layout,
            mean="with a running mean of the weights" if options.ema else "no running mean",
            samples=options.samples,
            peak=setting.peak / 1e12,
            shares=", ".join(f"{share:g}" for share in sorted(options.shares)),
            stage=options.zero_stage,
            ceiling=setting.ceiling / 1e12,
        ),
        values={
            "ceiling_flops_per_s": setting.ceiling,
            "peak_flops_per_s": setting.peak,
            "flops_per_sample": setting.flops_per_sample,
            "settings": vars(options),
            "cases": shown,
        },
        tables={"steps": shown},
        targets=targets,
        device=options.device,
        is_shown=is_shown,
    )


if __name__ == "__main__":
    main()
