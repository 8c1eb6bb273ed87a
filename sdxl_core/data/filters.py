"""Which rows are good enough: by caption, by the source's own numbers, by size and shape.

A filter answers with the reason and what was found, or None. They are in order of their cost: the
texts and numbers of a row are judged before its picture's header, that before its pixels.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from sdxl_core.contract.reject_reasons import RejectReason

Refusal = tuple[RejectReason, str]
AESTHETIC_KEY = "aesthetic"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleFilters:
    """What a row must be to become a sample. The defaults refuse what no bucket can hold well.

    Args:
        min_side_px: of the shorter side, upright or not.
        max_aspect: longer side divided by shorter side.
        min_aspect_ratio: height divided by width of the upright picture.
        max_aspect_ratio: height divided by width of the upright picture.
        max_upscale: how much a picture may be enlarged to cover its bucket.
        max_pixels: height times width of what is decoded at all. A PNG of the default limit takes
            about 1 GB while it is decoded, a JPEG much less.
        min_caption_characters: 1 refuses rows without a caption; 0 takes them.
        max_caption_characters: no limit if None.
        minima: smallest value of numeric keys of the source's metadata.
        maxima: largest value of such keys.
    """

    min_side_px: int = 1
    max_aspect: float = 8.0
    min_aspect_ratio: float = 0.0
    max_aspect_ratio: float = math.inf
    max_upscale: float = 4.0
    max_pixels: int = 100_000_000
    min_caption_characters: int = 1
    max_caption_characters: int | None = None
    minima: Mapping[str, float] = dataclasses.field(default_factory=dict)
    maxima: Mapping[str, float] = dataclasses.field(default_factory=dict)


def usable_captions(
    captions: tuple[str, ...], filters: SampleFilters
) -> tuple[tuple[str, ...], Refusal | None]:
    """The captions whose length is allowed, and the refusal if none is.

    A caption of white space alone is none.
    """
    stated = tuple(caption for caption in captions if caption.strip())
    if not stated:
        if filters.min_caption_characters == 0:
            return ("",), None
        return (), (RejectReason.MISSING_CAPTION, f"{len(captions)} captions, all of them empty")
    least, most = filters.min_caption_characters, filters.max_caption_characters
    long_enough = tuple(caption for caption in stated if len(caption) >= least)
    if not long_enough:
        longest = max(map(len, stated))
        found = f"the longest caption has {longest} characters, expected at least {least}"
        return (), (RejectReason.CAPTION_TOO_SHORT, found)
    usable = tuple(caption for caption in long_enough if most is None or len(caption) <= most)
    if not usable:
        shortest = min(map(len, long_enough))
        found = f"the shortest caption has {shortest} characters, expected at most {most}"
        return (), (RejectReason.CAPTION_TOO_LONG, found)
    return usable, None


def judge_metadata(
    metadata: Mapping[str, Any], filters: SampleFilters, *, scored: bool = False
) -> Refusal | None:
    """Holds the source's numbers against the limits.

    A key that is absent or null is a refusal of its own, as is a value that is no finite number:
    who asks for a score does not want rows without one. Texts that spell a number count as one.

    Args:
        metadata: the source's.
        filters: with the limits.
        scored: the key ``aesthetic``, if it is absent, is judged later: the picture will be scored.
    """
    for limits, is_minimum in ((filters.minima, True), (filters.maxima, False)):
        for key, limit in limits.items():
            if scored and key == AESTHETIC_KEY and metadata.get(key) is None:
                continue
            if metadata.get(key) is None:
                return RejectReason.METADATA_MISSING, f"no {key!r} among {sorted(metadata)[:20]}"
            value = finite_number(metadata[key])
            if value is None:
                return RejectReason.METADATA_INVALID, f"{key} is {metadata[key]!r}"
            if is_minimum and value < limit:
                return RejectReason.BELOW_MIN, f"{key} is {value:g}, expected at least {limit:g}"
            if not is_minimum and value > limit:
                return RejectReason.ABOVE_MAX, f"{key} is {value:g}, expected at most {limit:g}"
    return None


def judge_score(score: float, filters: SampleFilters) -> Refusal | None:
    """Holds an aesthetic score that was not among the source's numbers against the limits."""
    minima, maxima = (
        {AESTHETIC_KEY: limits[AESTHETIC_KEY]} if AESTHETIC_KEY in limits else {}
        for limits in (filters.minima, filters.maxima)
    )
    limits = dataclasses.replace(filters, minima=minima, maxima=maxima)
    return judge_metadata({AESTHETIC_KEY: score}, limits)


def judge_size(size: tuple[int, int], filters: SampleFilters) -> Refusal | None:
    """Holds the (height, width) of an upright picture against the limits."""
    height, width = size
    found = f"{height} x {width} px"
    if height * width > filters.max_pixels:
        return (
            RejectReason.TOO_MANY_PIXELS,
            f"{found} are {height * width}, expected at most {filters.max_pixels}",
        )
    if min(size) < filters.min_side_px:
        return RejectReason.TOO_SMALL, f"{found}, expected sides of {filters.min_side_px} at least"
    if max(size) > filters.max_aspect * min(size):
        return (
            RejectReason.ASPECT_OUT_OF_RANGE,
            f"{found}, expected a longer side of at most {filters.max_aspect:g} shorter ones",
        )
    if not filters.min_aspect_ratio <= height / width <= filters.max_aspect_ratio:
        return (
            RejectReason.ASPECT_OUT_OF_RANGE,
            f"{found}, expected height / width from {filters.min_aspect_ratio:g} to "
            f"{filters.max_aspect_ratio:g}",
        )
    return None


def judge_upscale(
    size: tuple[int, int], bucket: tuple[int, int], scale: float, filters: SampleFilters
) -> Refusal | None:
    """Holds the enlargement that a bucket asks of a picture against the limit."""
    if scale <= filters.max_upscale:
        return None
    return (
        RejectReason.UPSCALE_TOO_LARGE,
        f"{size[0]} x {size[1]} px to cover {bucket[0]} x {bucket[1]}: enlarged {scale:.3g} times, "
        f"expected at most {filters.max_upscale:g}",
    )


def finite_number(value: Any) -> float | None:
    """A number, or a text that spells one, as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
