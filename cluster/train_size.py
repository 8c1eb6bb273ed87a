"""How many workers a training run may have, and what each of them reserves. Plain arithmetic.

A run has a fixed number of workers, or a range: Ray Train then takes as many as there is room for,
and starts all of them again when that changes. The global batch stays what it is, so the workers of
any number share it evenly or are refused beforehand.
"""

import dataclasses
import math
from collections.abc import Sequence

from cluster.resources import ENCODER_CPUS, ClusterSize
from sdxl_core.contract.errors import ConfigError, ResourceError

# CPUs of one light task that reads samples, and CPUs that the workers leave to all of them.
TASK_CPUS, READER_CPUS = 0.25, 0.5
# Ray Train divides a machine's CPUs by a worker's and rounds down: with multiples of this, which
# are exact in binary and in Ray's four decimals, it comes to the number that was meant.
_CPU_STEP = 1 / 16


def accumulated_passes(batch_size: int, num_workers: int, micro_batch_size: int) -> int:
    """Forward passes of a worker in a step.

    Args:
        batch_size: rows of a global batch.
        num_workers: that share it.
        micro_batch_size: rows of one pass; 0: a worker's whole share.

    Raises:
        ConfigError: the workers cannot share the batch evenly.
    """
    each = num_workers * (micro_batch_size or 1)
    if batch_size % each:
        text = f" x how.micro_batch_size={micro_batch_size}" if micro_batch_size else ""
        raise ConfigError(
            f"batch: found {batch_size}, which {num_workers} workers{text} cannot share evenly; "
            f"expected a multiple of {each}. Change --batch, --how.workers or "
            "--how.micro-batch-size"
        )
    return batch_size // each if micro_batch_size else 1


def refuse_sizes(batch_size: int, sizes: Sequence[int], micro_batch_size: int) -> None:
    """Checks that workers of each number can share the batch.

    Raises:
        ConfigError: some cannot; those that can are named.
    """
    if len(sizes) == 1:
        accumulated_passes(batch_size, sizes[0], micro_batch_size)
        return
    can = [size for size in sizes if batch_size % (size * (micro_batch_size or 1)) == 0]
    cannot = [size for size in sizes if size not in can]
    if cannot:
        text = f" in passes of {micro_batch_size}" if micro_batch_size else ""
        raise ConfigError(
            f"how.min_workers: there may be {sizes[0]} to {sizes[-1]} workers, of which "
            f"{_listed(cannot)} cannot share a batch of {batch_size}{text} evenly, and Ray takes "
            f"any number in the range; those that can are {_listed(can)}. Change "
            "--how.min-workers, --how.workers, --batch or --how.micro-batch-size"
        )


def beside_encoders(size: ClusterSize, num_encoders: int, device: str) -> ClusterSize:
    """What the encoders leave of a cluster.

    Args:
        size: of the cluster.
        num_encoders: with a GPU each where there are any.
        device: ``cpu`` or ``cuda``.

    Raises:
        ResourceError: nothing is left for a worker.
    """
    if not num_encoders:
        return size
    num_gpus = size.num_gpus - num_encoders if device == "cuda" else size.num_gpus
    num_cpus = size.num_cpus - num_encoders * ENCODER_CPUS
    if (device == "cuda" and num_gpus < 1) or num_cpus <= 0:
        raise ResourceError(
            f"how.encoders: {num_encoders} encoders x "
            f"{'1 GPU' if device == 'cuda' else f'{ENCODER_CPUS} CPUs'}, but the cluster has "
            f"{size.num_gpus:g} GPUs and {size.num_cpus:g} CPUs, for workers as well. Use fewer "
            "encoders"
        )
    return dataclasses.replace(size, num_cpus=num_cpus, num_gpus=num_gpus, nodes=())


def plan_worker_cpus(
    num_threads: int, least: int, most: int, device: str, size: ClusterSize
) -> float:
    """CPUs that each worker reserves, so that the readers find some as well.

    Args:
        num_threads: torch threads of a worker on the CPU.
        least: workers that the run needs.
        most: workers that it may have; more than ``least`` is a range.
        device: ``cpu`` or ``cuda``.
        size: of the cluster.

    Raises:
        ResourceError: the workers do not fit.
    """
    if device == "cuda" and least > size.num_gpus:
        raise ResourceError(
            f"GPUs: {least} workers x 1 = {least}, but the cluster has {size.num_gpus:g} for them. "
            "Use fewer workers (--how.workers) or a larger cluster"
        )
    wanted = 1.0 if device == "cuda" else float(num_threads)
    if most > least:
        return _range_cpus(wanted, least, most, device, size)
    share = int(100 * (size.num_cpus - READER_CPUS) / most) / 100
    if share < 0.05:
        raise ResourceError(
            f"CPUs: {most} workers and {READER_CPUS} for those that read samples, but the cluster "
            f"has {size.num_cpus:g} for them. Use fewer workers (--how.workers)"
        )
    return min(share, wanted)


def num_workers_on(
    node: tuple[float, float], cpus_per_worker: float, most: int, device: str
) -> int:
    """How many workers Ray Train counts on a machine (CPUs, GPUs)."""
    num_cpus, num_gpus = node
    count = min(most, int(num_cpus // cpus_per_worker))
    return min(count, int(num_gpus)) if device == "cuda" else count


def _range_cpus(wanted: float, least: int, most: int, device: str, size: ClusterSize) -> float:
    """The most, up to ``wanted``, with which no machine can be filled by workers alone.

    Machines come and go, so each that has workers needs room for readers of its own.
    """
    nodes = size.nodes or ((size.num_cpus, size.num_gpus),)
    shares = [_CPU_STEP * n for n in range(math.floor(wanted / _CPU_STEP), 0, -1)]
    for room, low in ((READER_CPUS, wanted / 2), (TASK_CPUS, wanted / 2), (TASK_CPUS, 0.0)):
        for share in (share for share in shares if share >= low):
            counts = [num_workers_on(node, share, most, device) for node in nodes]
            left = [cpus - n * share for (cpus, _), n in zip(nodes, counts, strict=True) if n]
            if sum(counts) >= least and min(left) >= room:
                return share
    raise ResourceError(
        f"CPUs: at least {least} workers x {_CPU_STEP} and {TASK_CPUS} on each machine for those "
        f"that read samples, but the machines have {_listed([cpus for cpus, _ in nodes])}. Use a "
        "smaller --how.min-workers"
    )


def _listed(numbers: Sequence[float]) -> str:
    shown = [f"{number:g}" for number in numbers[:8]]
    return ", ".join([*shown, *(["..."] if len(numbers) > 8 else [])]) or "none"
