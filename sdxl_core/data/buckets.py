"""Aspect-ratio buckets: the shapes that pictures are trained in and best asked for in.

``SDXL_BUCKETS`` is the table of the SDXL paper (appendix I, arXiv:2307.01952) as it stands there;
it is not symmetric: 704 x 1344 has no mirror image. ``TINY_BUCKETS`` are the same shapes divided by
8, for the embedded model. A bucket is ``(height_px, width_px)``.
"""

import math
from collections.abc import Mapping, Sequence

from sdxl_core.contract.errors import ConfigError

Bucket = tuple[int, int]

SDXL_BUCKETS: tuple[Bucket, ...] = (
    (512, 2048),
    (512, 1984),
    (512, 1920),
    (512, 1856),
    (576, 1792),
    (576, 1728),
    (576, 1664),
    (640, 1600),
    (640, 1536),
    (704, 1472),
    (704, 1408),
    (704, 1344),
    (768, 1344),
    (768, 1280),
    (832, 1216),
    (832, 1152),
    (896, 1152),
    (896, 1088),
    (960, 1088),
    (960, 1024),
    (1024, 1024),
    (1024, 960),
    (1088, 960),
    (1088, 896),
    (1152, 896),
    (1152, 832),
    (1216, 832),
    (1280, 768),
    (1344, 768),
    (1408, 704),
    (1472, 704),
    (1536, 640),
    (1600, 640),
    (1664, 576),
    (1728, 576),
    (1792, 576),
    (1856, 512),
    (1920, 512),
    (1984, 512),
    (2048, 512),
)

TINY_BUCKETS: tuple[Bucket, ...] = tuple(
    (height // 8, width // 8) for height, width in SDXL_BUCKETS
)


def nearest_bucket(
    height_px: int, width_px: int, buckets: Sequence[Bucket] = SDXL_BUCKETS
) -> Bucket:
    """Returns the bucket whose aspect ratio is nearest to a picture's, by the difference of
    logarithms.

    Args:
        height_px: height of the picture, at least 1.
        width_px: width of the picture, at least 1.
        buckets: what to choose from; of equally near ones the first wins.

    Raises:
        ConfigError: if a side is below 1 pixel or there are no buckets.
    """
    if height_px < 1 or width_px < 1 or not buckets:
        raise ConfigError(
            f"nearest bucket: found a picture of {height_px} x {width_px} px and "
            f"{len(buckets)} buckets, expected sides of at least 1 px and at least one bucket"
        )
    wanted = math.log(height_px / width_px)
    return min(buckets, key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - wanted))


def parse_area(text: str) -> int:
    """``"1024x1024"`` (height x width, pixels) as an area in pixels.

    Raises:
        ConfigError: if it is no pair of positive numbers.
    """
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise ConfigError(f"area: found {text!r}, expected height x width, such as 512x512")
    height_px, width_px = map(int, sides)
    if height_px * width_px < 1:
        raise ConfigError(f"area: found {text!r}, expected sides of at least 1 px")
    return height_px * width_px


def generate_buckets(
    area_px: int | tuple[int, int], step_px: int, *, max_aspect: float = 4.0
) -> tuple[Bucket, ...]:
    """Every bucket whose sides are multiples of a step and whose area is just within a limit.

    Each side in turn is given the longest partner that keeps the area within ``area_px``, and both
    orders are taken, so the list is symmetric; the largest square is always in it. For 1024 x 1024
    and a step of 64 that gives 33 of the paper's 40 buckets and no other; the other 7 are smaller
    than they could be.

    Args:
        area_px: the largest area, pixels, or the sides of a picture of that area.
        step_px: what every side is a multiple of, pixels; 8 at least for the autoencoder.
        max_aspect: the longest side divided by the shortest, at least 1.

    Raises:
        ConfigError: if no bucket fits.
    """
    area = area_px if isinstance(area_px, int) else area_px[0] * area_px[1]
    if step_px < 8 or step_px % 8 or max_aspect < 1 or area < step_px**2:
        raise ConfigError(
            f"buckets: found an area of {area} px, a step of {step_px} px and a largest aspect of "
            f"{max_aspect}; expected a step that is a multiple of 8, an area of at least one step "
            "squared and an aspect of at least 1"
        )
    square = math.isqrt(area) // step_px * step_px
    found: set[Bucket] = {(square, square)}
    for side in range(step_px, area // step_px + 1, step_px):
        partner = area // side // step_px * step_px
        if partner and max(side, partner) <= max_aspect * min(side, partner):
            found |= {(side, partner), (partner, side)}
    return tuple(sorted(found, key=lambda bucket: (bucket[0], -bucket[1])))


def cover_scale(height_px: int, width_px: int, bucket: Bucket) -> float:
    """How much a picture is enlarged (> 1) or reduced (< 1) so that it just covers a bucket."""
    return max(bucket[0] / height_px, bucket[1] / width_px)


def choose_bucket(height_px: int, width_px: int, stages: Sequence[Sequence[Bucket]]) -> Bucket:
    """The bucket of a picture where there are lists of buckets of several areas.

    Within a list it is the nearest in aspect ratio. The list is the one of the largest area that
    needs no enlarging; for a picture that is too small for all of them, the one of the smallest.

    Args:
        height_px: height of the picture, upright.
        width_px: width of the picture, upright.
        stages: lists of buckets by falling area; one list is the usual case.

    Raises:
        ConfigError: if a side is below 1 pixel, or there are no buckets.
    """
    if not stages:
        raise ConfigError("buckets: found no list of buckets, expected at least one")
    for stage in stages:
        bucket = nearest_bucket(height_px, width_px, stage)
        if cover_scale(height_px, width_px, bucket) <= 1:
            return bucket
    return bucket


def merge_thin_buckets(counts: Mapping[Bucket, int], least: int) -> dict[Bucket, Bucket]:
    """Maps buckets with too few pictures onto their neighbours until none is too thin.

    The thinnest goes first (of equally thin ones the smallest), to the bucket that is nearest in
    log aspect ratio among those of about its area, or of any area when there is none.

    Args:
        counts: pictures of each bucket; one with none of them is thin as well.
        least: pictures that a bucket must have.

    Returns:
        For every bucket of ``counts`` the one to use: itself, or another that is used.
    """
    held = dict(counts)
    used = {bucket: bucket for bucket in held}
    while len(held) > 1:
        thinnest = min(held, key=lambda bucket: (held[bucket], bucket))
        if held[thinnest] >= least:
            break
        num_moved = held.pop(thinnest)
        nearest = min(held, key=lambda bucket: _distance(thinnest, bucket))
        held[nearest] += num_moved
        used = {bucket: nearest if now == thinnest else now for bucket, now in used.items()}
    return used


def _distance(bucket: Bucket, other: Bucket) -> tuple[bool, float, Bucket]:
    """Sort key: those of another area stage last, then by aspect; the bucket breaks ties."""
    areas = math.log(bucket[0] * bucket[1]) - math.log(other[0] * other[1])
    aspects = math.log(bucket[0] / bucket[1]) - math.log(other[0] / other[1])
    return abs(areas) > math.log(1.5), abs(aspects), other
