"""What a batch plan is made with, and what follows from it for each bucket.

An epoch is one pass over all rows by default. Bucket weights and temperature change how its rows
are shared among buckets, not how many they are: a bucket may then be passed over several times in
an epoch, or once in several.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import Bucket

Remainder = Literal["drop", "carry", "repeat"]

SHARE_ONE = 1 << 32  # shares are fixed-point numbers: exact sums on every machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What, beside the manifest and the epoch, decides which rows form which batch.

    Args:
        seed: of every order and draw of the plan; any integer.
        global_batch_size: rows of a batch over all ranks and accumulation steps, >= 1. With
            ``area_scaled_batches`` that of the bucket with the largest area.
        area_scaled_batches: let smaller buckets have larger batches, of about equally many pixels.
        bucket_weights: factor for the share of a bucket (height, width), >= 0; 1 for those that are
            not named, 0 leaves the bucket out.
        bucket_temperature: shares are proportional to rows ** (1 / temperature), >= 1: 1 is
            by size, math.inf is the same for all.
        remainder: what becomes of rows that do not fill a batch at the end of an epoch. ``carry``:
            they begin the bucket's next epoch. ``drop``: they are not seen. ``repeat``: the last
            batch is filled with rows from the epoch's beginning.
        window_units: rows are mixed within so many units, >= 1, that are read at about one time.

    Raises:
        ConfigError: a value that cannot be.
    """

    seed: int
    global_batch_size: int
    area_scaled_batches: bool = False
    bucket_weights: Mapping[Bucket, float] | None = None
    bucket_temperature: float = 1.0
    remainder: Remainder = "carry"
    window_units: int = 16

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "window_units"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if not self.bucket_temperature >= 1:
            raise ConfigError(
                f"bucket_temperature: found {self.bucket_temperature}, expected at least 1 (shares "
                "by size); larger values give thin buckets more"
            )
        if self.remainder not in get_args(Remainder):
            raise ConfigError(
                f"remainder: found {self.remainder!r}, expected one of {get_args(Remainder)}"
            )
        for bucket, weight in (self.bucket_weights or {}).items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(
                    f"weight of bucket {_name(bucket)}: found {weight}, expected 0 or more"
                )


def batch_sizes(
    buckets: Sequence[Bucket], settings: PlanSettings, *, world_batch_multiple: int = 1
) -> tuple[int, ...]:
    """Rows of a global batch of each bucket: multiples of ``world_batch_multiple``.

    Area-scaled ones are rounded down, but to one multiple at least.

    Raises:
        ConfigError: ``global_batch_size`` is no multiple.
    """
    size = settings.global_batch_size
    if world_batch_multiple < 1 or size % world_batch_multiple:
        raise ConfigError(
            f"global_batch_size: found {size}, expected a multiple of {world_batch_multiple}, "
            "ranks times micro-batch size"
        )
    if not settings.area_scaled_batches:
        return (size,) * len(buckets)
    largest_px = max((height * width for height, width in buckets), default=1)
    return tuple(
        max(1, size * largest_px // (height * width * world_batch_multiple)) * world_batch_multiple
        for height, width in buckets
    )


def is_left_out(bucket: Bucket, settings: PlanSettings) -> bool:
    """Has the bucket the weight 0."""
    return (settings.bucket_weights or {}).get(bucket, 1.0) == 0


def bucket_shares(
    buckets: Sequence[Bucket], rows_per_pass: Sequence[float], settings: PlanSettings
) -> tuple[int, ...] | None:
    """The share of each bucket in an epoch's rows, in units of ``1 / SHARE_ONE``.

    Args:
        buckets: all of the manifest.
        rows_per_pass: of each bucket, with the weights of the datasets, on average.
        settings: with bucket weights and temperature.

    Returns:
        None if every bucket that is not left out has the share that its rows have.

    Raises:
        ConfigError: a weight of a bucket that has no rows, or no bucket with a weight.
    """
    given = settings.bucket_weights or {}
    unknown = sorted(set(given) - set(buckets))
    if unknown:
        raise ConfigError(
            f"bucket_weights: found {', '.join(map(_name, unknown))}, expected buckets of the "
            f"samples: {', '.join(map(_name, sorted(buckets)))}"
        )
    weights = [float(given.get(bucket, 1.0)) for bucket in buckets]
    if not any(weight and rows for weight, rows in zip(weights, rows_per_pass, strict=True)):
        raise ConfigError(
            "batch plan: no bucket has rows and a weight above 0; nothing to train on"
        )
    if settings.bucket_temperature == 1 and len({weight for weight in weights if weight}) == 1:
        return None
    power = 1.0 / settings.bucket_temperature
    parts = [
        weight * math.pow(rows, power) if rows else 0.0
        for weight, rows in zip(weights, rows_per_pass, strict=True)
    ]
    total = math.fsum(parts)
    return tuple(round(part / total * SHARE_ONE) for part in parts)


def _name(bucket: Bucket) -> str:
    return f"{bucket[0]}x{bucket[1]}"
