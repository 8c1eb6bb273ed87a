"""Training the full-size base UNet on one accelerator: samples per second, MFU and memory.

Weights are random; speed and memory do not depend on them. Needs ``sdxl_core`` and, for its last
case, deepspeed; no Ray:

    python -m benchmarks.gpu_train                                      on a GPU, ~15 minutes
    python -m benchmarks.gpu_train --modes compiled --micro-batches 8 4      the best ones, ~5
    python -m benchmarks.gpu_train --preset tiny --device cpu           a try of the script

Every case is written at once, so a run that is cut short keeps what it has.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_generate import matmul_flops_per_s
from benchmarks.harness import Target, progress, write_results
from benchmarks.train_engines import DeepSpeedEngine, Engine, MasterEngine
from sdxl_core.contract.seeds import sample_seed
from sdxl_core.nets.flops import unet_flops
from sdxl_core.nets.presets import ModelPreset, get_preset
from sdxl_core.nets.unet import build_unet
from sdxl_core.training.activation_checkpointing import checkpoint_blocks
from sdxl_core.training.conditions import allow_dropped_numbers
from sdxl_core.training.memory_layout import use_channels_last_activations
from sdxl_core.training.objective import DiffusionBatch
from sdxl_core.training.seeded_objective import Objective, ObjectiveTables, losses_of_samples

WANTED_MFU = 0.4
# Dense bfloat16 peaks of the vendor's data sheets, FLOP/s.
_PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
_ATTENTION = {
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
}
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One measured setting; a case that did not fit has no numbers but its note."""

    engine: str
    is_compiled: bool
    micro_batch: int
    checkpointed: float
    num_passes: int
    samples_per_s: float = 0.0
    mfu: float = 0.0
    mfu_of_passes: float = 0.0
    share_of_ceiling: float = 0.0
    pass_ms: float = 0.0
    optimizer_ms: float = 0.0
    peak_memory_gb: float = 0.0
    warm_up_s: float = 0.0
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """What all cases of a run share."""

    options: argparse.Namespace
    preset: ModelPreset
    device: torch.device
    dtype: torch.dtype
    size_px: int
    ceiling: float
    peak: float
    objective: Objective
    tables: ObjectiveTables

    @property
    def flops_per_sample(self) -> float:
        """Forward, and twice that backward."""
        return 3.0 * unet_flops(self.preset, self.size_px, self.size_px)


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
        _free(setting.device)
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
    parser.add_argument("--attention", choices=("auto", *_ATTENTION), default="auto")
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
    _wait(setting.device)
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
        measured = _measure_if_it_fits(setting, engine, network, case)
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
            case = _measure_if_it_fits(setting, engine, network, case)
            if not case.note:
                break
    return case


def _measure_if_it_fits(setting: Setting, engine: Engine, network: nn.Module, case: Case) -> Case:
    checkpoint_blocks(network, share=case.checkpointed)
    try:
        measured = _measure(setting, engine, case)
    except torch.OutOfMemoryError:
        measured = dataclasses.replace(case, note="out of memory")
    engine.drop_gradients()  # here, where the error with its frames is gone
    _free(setting.device)
    progress(json.dumps(dataclasses.asdict(measured)))
    return measured


def _measure(setting: Setting, engine: Engine, case: Case) -> Case:
    """Times whole steps; the host looks at no number before they are done."""
    device, options = setting.device, setting.options
    batch = random_batch(setting, case.micro_batch)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    with _attention(options.attention):
        _step(setting, engine, batch, 0)
        _wait(device)
        warm_up_s = time.perf_counter() - started
        started = time.perf_counter()
        marks = [_step(setting, engine, batch, 1 + step) for step in range(options.steps)]
        _wait(device)
    step_s = (time.perf_counter() - started) / options.steps
    optimizer_s = sum(_seconds_between(*pair) for pair in marks) / options.steps
    samples = case.num_passes * case.micro_batch
    flops = samples * setting.flops_per_sample
    return dataclasses.replace(
        case,
        samples_per_s=round(samples / step_s, 4),
        mfu=round(flops / step_s / setting.peak, 4),
        mfu_of_passes=round(flops / (step_s - optimizer_s) / setting.peak, 4),
        share_of_ceiling=round(flops / step_s / setting.ceiling, 4),
        pass_ms=round(1e3 * (step_s - optimizer_s) / case.num_passes, 2),
        optimizer_ms=round(1e3 * optimizer_s, 2),
        peak_memory_gb=round(_peak_gb(device), 2),
        warm_up_s=round(warm_up_s, 2),
        note="",
    )


def random_batch(setting: Setting, micro_batch: int) -> DiffusionBatch:
    """Latents and text states as a worker has them on its device."""
    preset, device = setting.preset, setting.device
    side, width = setting.size_px // 8, preset.text_2.projection_width
    states_shape = (micro_batch, preset.text_2.num_positions, preset.unet.cross_attention_dim)
    numbers = torch.tensor([setting.size_px] * 2 + [0] * 2 + [setting.size_px] * 2)
    return DiffusionBatch(
        latents_BCHW=torch.randn(micro_batch, 4, side, side, device=device),
        states_BTD=torch.randn(states_shape, device=device, dtype=setting.dtype),
        pooled_BP=torch.randn(micro_batch, width, device=device, dtype=setting.dtype),
        time_ids_BN=numbers[: preset.num_time_ids].float().repeat(micro_batch, 1).to(device),
    )


def _step(setting: Setting, engine: Engine, batch: DiffusionBatch, step: int) -> tuple[Any, Any]:
    """One step of all its passes; returns marks before and after the optimizer."""
    num_samples = len(batch.latents_BCHW)
    for number in range(engine.num_passes):
        seeds = [sample_seed(step, number, str(place)) for place in range(num_samples)]
        losses = losses_of_samples(
            engine.module,
            batch,
            seeds,
            objective=setting.objective,
            tables=setting.tables,
            network_dtype=setting.dtype,
        )
        loss: Tensor = losses.loss_B.mean()
        engine.backward(loss)
        is_last = number == engine.num_passes - 1
        before = _mark(setting.device)
        engine.end_pass(is_last=is_last)
    return before, _mark(setting.device)


@contextlib.contextmanager
def _attention(name: str) -> Iterator[None]:
    """torch's own choice of the attention kernel, or one before the others."""
    if name == "auto":
        yield
    else:
        with sdpa_kernel(_ATTENTION[name], set_priority=True):
            yield


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds_between(before: Any, after: Any) -> float:
    if isinstance(before, float):
        return float(after - before)
    return float(before.elapsed_time(after)) / 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _peak_gb(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


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
