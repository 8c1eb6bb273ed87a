"""How many workers of each kind, and whether they fit: decided before any of them is started."""

import dataclasses
import math

from sdxl_core.contract.errors import ResourceError

# What light workers reserve. On a CPU-only cluster Ray counts cores and would otherwise never
# start a pool that does not fit beside the denoisers; on a GPU they share the denoiser's device.
ENCODER_CPUS, WRITER_CPUS = 0.1, 0.1
DENOISER_GPUS, WRITER_GPUS, ENCODER_GPUS = 0.8, 0.15, 0.05

# Base and refiner get devices of their own only if the best split keeps them this busy.
MIN_SPLIT_UTILISATION = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """Multiply-adds times two that the whole table asks for, by kind of worker."""

    base: float
    refiner: float
    decode: float
    encode: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.base + self.refiner + self.decode + self.encode


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterSize:
    """What Ray says that there is. ``nodes``: CPUs and GPUs of each machine, if they are known."""

    num_cpus: float
    num_gpus: float
    memory_bytes: float
    num_nodes: int = 1
    nodes: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolWish:
    """Numbers that the user fixed; 0 means: decide."""

    num_denoisers: int = 0
    num_refiners: int = 0
    num_encoders: int = 0
    num_writers: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """The pools. With ``num_refiners`` 0 the denoisers run base and refiner on one device."""

    device: str
    num_threads: int
    num_encoders: int
    num_denoisers: int
    num_refiners: int
    num_writers: int
    denoiser_cpus: float
    reasons: tuple[str, ...]

    @property
    def gpus(self) -> tuple[float, float, float]:
        """GPU share of one encoder, one denoiser or refiner, one writer."""
        if self.device == "cpu":
            return 0.0, 0.0, 0.0
        return ENCODER_GPUS, DENOISER_GPUS, WRITER_GPUS

    def describe(self) -> str:
        """For people: the numbers and why."""
        refiners = f", refiner {self.num_refiners}" if self.num_refiners else ""
        sizes = (
            f"encoder {self.num_encoders}, base {self.num_denoisers}{refiners}, "
            f"writer {self.num_writers} on {self.device}"
        )
        return "\n".join([f"pools: {sizes}", *(f"  {reason}" for reason in self.reasons)])


def plan_pools(
    flops: Flops,
    cluster: ClusterSize,
    wish: PoolWish,
    *,
    device: str,
    num_threads: int,
    denoiser_bytes: float,
) -> PoolPlan:
    """Sizes the pools from the work and the cluster.

    Args:
        flops: The whole table's work.
        cluster: What there is.
        wish: What the user fixed.
        device: ``cpu`` or ``cuda``.
        num_threads: Cores of one worker on the CPU.
        denoiser_bytes: Weights that one denoiser holds.

    Raises:
        ResourceError: if the pools cannot all run at the same time; with the arithmetic.
    """
    reasons: list[str] = []
    num_devices = _num_devices(cluster, wish, device, num_threads)
    num_base, num_refiners = _split(flops, num_devices, wish, reasons)
    num_encoders = wish.num_encoders or 1
    num_writers = wish.num_writers or _num_writers(flops, num_devices, device, reasons)
    spare = cluster.num_cpus - num_encoders * ENCODER_CPUS - num_writers * WRITER_CPUS
    denoiser_cpus = min(float(num_threads), math.floor(100 * spare / num_devices) / 100)
    plan = PoolPlan(
        device=device,
        num_threads=num_threads,
        num_encoders=num_encoders,
        num_denoisers=num_base,
        num_refiners=num_refiners,
        num_writers=num_writers,
        denoiser_cpus=denoiser_cpus,
        reasons=tuple(reasons),
    )
    _check_fit(plan, cluster, denoiser_bytes)
    return plan


def _num_devices(cluster: ClusterSize, wish: PoolWish, device: str, num_threads: int) -> int:
    if wish.num_denoisers:
        return wish.num_denoisers + wish.num_refiners
    if device == "cuda":
        return max(1, int(cluster.num_gpus))
    return max(1, int(cluster.num_cpus // num_threads))


def _split(flops: Flops, num_devices: int, wish: PoolWish, reasons: list[str]) -> tuple[int, int]:
    """Devices for the base and for the refiner; 0 for the refiner means that they share."""
    if wish.num_denoisers:
        reasons.append(f"{num_devices} denoisers: asked for")
        return wish.num_denoisers, wish.num_refiners
    if not flops.refiner:
        reasons.append(f"{num_devices} denoisers, one per device; no row uses the refiner")
        return num_devices, 0
    ratio = flops.base / flops.refiner
    best, num_base = max(
        (
            (_split_utilisation(flops, base, num_devices - base), base)
            for base in range(1, num_devices)
        ),
        default=(0.0, 0),
    )
    if best < MIN_SPLIT_UTILISATION:
        reasons.append(
            f"base : refiner work is {ratio:.2f} : 1; the best split of {num_devices} devices "
            f"would keep them {best:.0%} busy, so each device holds both networks"
        )
        return num_devices, 0
    reasons.append(
        f"base : refiner work is {ratio:.2f} : 1; {num_base} + {num_devices - num_base} devices "
        f"keep them {best:.0%} busy"
    )
    return num_base, num_devices - num_base


def _split_utilisation(flops: Flops, num_base: int, num_refiners: int) -> float:
    """Share of the devices' time that is used while the slower side works through."""
    slowest = max(flops.base / num_base, flops.refiner / num_refiners)
    return (flops.base + flops.refiner) / (slowest * (num_base + num_refiners))


def _num_writers(flops: Flops, num_devices: int, device: str, reasons: list[str]) -> int:
    if device == "cuda":
        reasons.append("one writer per GPU: it decodes on a share of the denoiser's device")
        return num_devices
    share = flops.decode / flops.total if flops.total else 0.0
    num_writers = max(1, math.ceil(num_devices * share))
    reasons.append(f"decoding is {share:.1%} of the work: {num_writers} writers")
    return num_writers


def _check_fit(plan: PoolPlan, cluster: ClusterSize, denoiser_bytes: float) -> None:
    num_denoisers = plan.num_denoisers + plan.num_refiners
    cpus = (
        plan.num_encoders * ENCODER_CPUS
        + num_denoisers * max(plan.denoiser_cpus, 0.01)
        + plan.num_writers * WRITER_CPUS
    )
    sums = (
        f"{plan.num_encoders} encoders x {ENCODER_CPUS} + {num_denoisers} denoisers x "
        f"{plan.denoiser_cpus:.2f} + {plan.num_writers} writers x {WRITER_CPUS}"
    )
    if plan.denoiser_cpus < 0.05 or cpus > cluster.num_cpus + 1e-6:
        raise ResourceError(
            f"CPUs: {sums} = {cpus:.2f}, but the cluster has {cluster.num_cpus:g}. Use fewer "
            "workers (--how.denoisers, --how.writers) or a larger cluster"
        )
    encoder, denoiser, writer = plan.gpus
    gpus = plan.num_encoders * encoder + num_denoisers * denoiser + plan.num_writers * writer
    if gpus > cluster.num_gpus + 1e-6:
        raise ResourceError(
            f"GPUs: {plan.num_encoders} x {encoder} + {num_denoisers} x {denoiser} + "
            f"{plan.num_writers} x {writer} = {gpus:.2f}, but the cluster has "
            f"{cluster.num_gpus:g}. All pools run at the same time; use fewer workers"
        )
    if plan.device == "cpu" and num_denoisers * denoiser_bytes > cluster.memory_bytes:
        raise ResourceError(
            f"memory: {num_denoisers} denoisers x {denoiser_bytes / 1e9:.1f} GB of weights = "
            f"{num_denoisers * denoiser_bytes / 1e9:.1f} GB, but the cluster has "
            f"{cluster.memory_bytes / 1e9:.1f} GB. Use fewer denoisers (--how.denoisers)"
        )
