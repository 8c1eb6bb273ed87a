"""Filters of rows: each limit refuses what is beyond it, says so, and lets the rest through."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.samples import RejectReason
from sdxl_core.data.filters import (
    SampleFilters,
    finite_number,
    judge_metadata,
    judge_size,
    usable_captions,
)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"score": 5}, None),
        ({"score": "6.5"}, None),
        ({"score": 4.99}, RejectReason.BELOW_MIN),
        ({"score": 9, "punsafe": 0.2}, RejectReason.ABOVE_MAX),
        ({}, RejectReason.METADATA_MISSING),
        ({"score": None}, RejectReason.METADATA_MISSING),
        ({"score": math.nan}, RejectReason.METADATA_INVALID),
        ({"score": "high"}, RejectReason.METADATA_INVALID),
        ({"score": True}, RejectReason.METADATA_INVALID),
    ],
)
def test_metadata_is_held_against_minima_and_maxima(
    metadata: dict[str, Any], reason: RejectReason | None
) -> None:
    filters = SampleFilters(minima={"score": 5}, maxima={"punsafe": 0.1})
    refusal = judge_metadata({"punsafe": 0.1} | metadata, filters)
    assert (refusal[0] if refusal else None) == reason


def test_all_captions_of_allowed_length_are_kept_in_order() -> None:
    filters = SampleFilters(min_caption_characters=3, max_caption_characters=8)
    captions = ("a cat", "", "ok", "a long caption", "a dog")
    assert usable_captions(captions, filters) == (("a cat", "a dog"), None)


@pytest.mark.parametrize(
    ("captions", "reason"),
    [
        ((), RejectReason.MISSING_CAPTION),
        (("", "  "), RejectReason.MISSING_CAPTION),
        (("ab",), RejectReason.CAPTION_TOO_SHORT),
        (("abcdefghi",), RejectReason.CAPTION_TOO_LONG),
    ],
)
def test_rows_without_a_caption_of_allowed_length_are_refused(
    captions: tuple[str, ...], reason: RejectReason
) -> None:
    filters = SampleFilters(min_caption_characters=3, max_caption_characters=8)
    kept, refusal = usable_captions(captions, filters)
    assert kept == ()
    assert refusal is not None
    assert refusal[0] == reason


def test_rows_without_a_caption_pass_where_none_is_asked_for() -> None:
    assert usable_captions((), SampleFilters(min_caption_characters=0)) == (("",), None)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_sizes_pass_exactly_when_within_all_limits(height: int, width: int) -> None:
    filters = SampleFilters(min_side_px=200, max_aspect=3, max_aspect_ratio=2, max_pixels=2_000_000)
    fits = (
        min(height, width) >= 200
        and max(height, width) <= 3 * min(height, width)
        and height <= 2 * width
        and height * width <= 2_000_000
    )
    assert (judge_size((height, width), filters) is None) == fits


@given(st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(), st.binary()))
def test_a_finite_number_is_finite_or_none(value: Any) -> None:
    number = finite_number(value)
    assert number is None or math.isfinite(number)
