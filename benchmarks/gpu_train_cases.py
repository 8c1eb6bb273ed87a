"""One measured setting of a training: whole steps on random batches, timed on their device."""

import argparse
import contextlib
import dataclasses
import gc
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness import progress
from benchmarks.train_engines import Engine
from sdxl_core.contract.seeds import sample_seed
from sdxl_core.nets.flops import unet_flops
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.training.activation_checkpointing import checkpoint_blocks
from sdxl_core.training.objective import DiffusionBatch
from sdxl_core.training.seeded_objective import Objective, ObjectiveTables, losses_of_samples

ATTENTION = {
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
}


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


def measure_if_it_fits(setting: Setting, engine: Engine, network: nn.Module, case: Case) -> Case:
    checkpoint_blocks(network, share=case.checkpointed)
    try:
        measured = _measure(setting, engine, case)
    except torch.OutOfMemoryError:
        measured = dataclasses.replace(case, note="out of memory")
    engine.drop_gradients()  # here, where the error with its frames is gone
    free(setting.device)
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
        wait(device)
        warm_up_s = time.perf_counter() - started
        started = time.perf_counter()
        marks = [_step(setting, engine, batch, 1 + step) for step in range(options.steps)]
        wait(device)
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
        with sdpa_kernel(ATTENTION[name], set_priority=True):
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


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _peak_gb(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
