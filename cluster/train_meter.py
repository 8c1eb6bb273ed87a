"""What a training run tells of itself, summed up over steps and workers.

Nothing is read from the device between two reports: a report is the one moment at which the host
waits and the workers agree on something, whether to stop included.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdxl_core.data.buckets import Bucket
from sdxl_core.training.loss_bands import LossBands
from sdxl_core.training.seeded_objective import SampleLosses

NUM_BANDS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a worker was asked for from outside: ``checkpoint`` now, and to ``stop`` after it."""

    checkpoint: bool = False
    stop: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the workers found since the last report.

    Args:
        values: by name, as they go into trackers; numbers only.
        wishes: of all workers together.
    """

    values: dict[str, float]
    wishes: Wishes


class Meter:
    """Adds up losses, times and work of one worker; reports those of all.

    Args:
        buckets: (height, width) of all buckets, the same on every worker.
        flops_of_bucket: of training on one sample of each, forward and backward; what is computed
            again to save memory is not counted.
        device: of the losses, and of what the workers exchange.
        peak_flops_per_s: of one device, for the utilisation; None if it is not known.
        num_bands: equal bands of noise levels that losses are told by; 1: no levels, no bands.
        part_names: what else is told of each sample, the same on every worker.
    """

    def __init__(
        self,
        buckets: tuple[Bucket, ...],
        flops_of_bucket: Mapping[Bucket, float],
        *,
        device: str,
        peak_flops_per_s: float | None = None,
        num_bands: int = NUM_BANDS,
        part_names: tuple[str, ...] = (),
    ) -> None:
        self._buckets = buckets
        self._flops_of_bucket = flops_of_bucket
        self._device = device
        self._peak = peak_flops_per_s
        self._num_bands = num_bands
        self._bands = {bucket: LossBands(num_bands, device=device) for bucket in buckets}
        # A band of its own for each: sums and counts that leave out what is not finite.
        self._parts = {name: LossBands(1, device=device) for name in part_names}
        self._started = time.monotonic()
        self._num_samples = 0
        self._flops = self._wait_s = 0.0

    def add_losses(self, bucket: Bucket, losses: SampleLosses) -> None:
        """Counts the samples of one forward pass in."""
        self._bands[bucket].add(losses.error_B, losses.timestep_B)
        for name, sums in self._parts.items():
            sums.add(losses.parts[name], torch.zeros_like(losses.timestep_B))
        num_samples = len(losses.timestep_B)
        self._num_samples += num_samples
        self._flops += num_samples * self._flops_of_bucket.get(bucket, 0.0)

    def add_wait(self, seconds: float) -> None:
        """Counts time in which the worker had no data."""
        self._wait_s += seconds

    @contextlib.contextmanager
    def leaving_out(self) -> Iterator[None]:
        """The time within is no training, and is not counted."""
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began

    def report(self, wishes: Wishes) -> Report:
        """Adds up what all workers have, and begins anew. All workers call it at the same step."""
        seconds = time.monotonic() - self._started
        all_bands = [*self._bands.values(), *self._parts.values()]
        sums = [bands.sums_K2 for bands in all_bands]
        own = [self._num_samples, self._flops, self._wait_s, seconds]
        asked = [float(wishes.checkpoint), float(wishes.stop)]
        own_6 = torch.tensor(own + asked, dtype=torch.float64, device=self._device)
        together = torch.cat([*(sums_K2.flatten() for sums_K2 in sums), own_6])
        dist.all_reduce(together)
        for sums_K2 in sums:
            sums_K2.zero_()
        self._num_samples, self._flops, self._wait_s = 0, 0.0, 0.0
        self._started = time.monotonic()
        found = together.cpu()
        num_losses = 2 * self._num_bands * len(self._buckets)
        sums_GK2 = found[:num_losses].view(-1, self._num_bands, 2)
        return self._read(sums_GK2, found[num_losses:-6].view(-1, 2), found[-6:].tolist())

    def _read(self, sums_GK2: Tensor, sums_P2: Tensor, totals: list[float]) -> Report:
        num_samples, flops, wait_s, worker_s, num_checkpoints, num_stops = totals
        world_size = dist.get_world_size()
        seconds = worker_s / world_size
        values = {"loss": _mean(sums_GK2.sum((0, 1)))}
        values |= {name: _mean(sums_2) for name, sums_2 in zip(self._parts, sums_P2, strict=True)}
        if self._num_bands > 1:
            for band, sums_2 in enumerate(sums_GK2.sum(0)):
                first = 1000 * band // self._num_bands
                last = 1000 * (band + 1) // self._num_bands - 1
                values[f"loss_by_noise/{first:03d}-{last:03d}"] = _mean(sums_2)
        for (height, width), sums_2 in zip(self._buckets, sums_GK2.sum(1), strict=True):
            values[f"loss_by_bucket/{height}x{width}"] = _mean(sums_2)
        values["samples_per_s"] = num_samples / seconds
        values["tflops_per_s_per_worker"] = flops / worker_s / 1e12
        if self._peak:
            values["mfu"] = flops / worker_s / self._peak
        values["data_wait_share"] = wait_s / worker_s
        values["memory_gb"] = _memory_bytes(self._device) / 1e9
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        wishes = Wishes(checkpoint=num_checkpoints > 0, stop=num_stops > 0)
        return Report(values=known, wishes=wishes)


def _mean(sums_2: Tensor) -> float:
    total, count = sums_2.tolist()
    return total / count if count else math.nan


def _memory_bytes(device: str) -> float:
    """The most that this worker has held: of the device, or of the process on a CPU."""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated())
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


# Dense bfloat16 peaks as the vendor's data sheets give them, FLOP/s.
_PEAKS: Mapping[str, float] = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "B200": 2250e12,
}


def peak_flops_per_s(device_name: str) -> float | None:
    """Peak of a device by its name; None for one that is not in the table."""
    return next((peak for name, peak in _PEAKS.items() if name in device_name), None)


def report_line(step: int, num_steps: int, values: Mapping[str, Any]) -> str:
    """The state in one line, for people."""
    shown = [f"step {step}/{num_steps}"]
    for name, form in (
        ("loss", "loss {:.4f}"),
        ("holdout/loss", "held out {:.4f}"),
        ("psnr_db", "PSNR {:.1f} dB"),
        ("holdout/rfid", "rFID {:.2f}"),
        ("grad_norm", "norm {:.2f}"),
        ("learning_rate", "lr {:.2e}"),
        ("samples_per_s", "{:.1f} samples/s"),
        ("mfu", "MFU {:.0%}"),
        ("data_wait_share", "waits for data {:.0%}"),
        ("num_skipped", "{:.0f} skipped"),
        ("eta_s", "{:.0f} s left"),
    ):
        if name in values and not (name == "num_skipped" and not values[name]):
            shown.append(form.format(values[name]))
    return ", ".join(shown)
