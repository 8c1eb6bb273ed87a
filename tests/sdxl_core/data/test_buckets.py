"""The bucket tables and the choice of a bucket."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import (
    SDXL_BUCKETS,
    TINY_BUCKETS,
    choose_bucket,
    generate_buckets,
    merge_thin_buckets,
    nearest_bucket,
    parse_area,
)


def test_sdxl_buckets_are_forty_multiples_of_64_near_one_megapixel() -> None:
    assert len(set(SDXL_BUCKETS)) == 40
    for height_px, width_px in SDXL_BUCKETS:
        assert height_px % 64 == width_px % 64 == 0
        assert 0.9 <= height_px * width_px / 1024**2 <= 1.0


def test_tiny_buckets_divide_the_table_by_eight() -> None:
    assert (128, 128) in TINY_BUCKETS
    assert (104, 152) in TINY_BUCKETS
    assert all(side % 8 == 0 for bucket in TINY_BUCKETS for side in bucket)


@given(st.sampled_from(SDXL_BUCKETS))
def test_nearest_bucket_of_a_bucket_is_itself(bucket: tuple[int, int]) -> None:
    assert nearest_bucket(*bucket) == bucket


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_nearest_bucket_has_the_smallest_log_ratio_distance(height_px: int, width_px: int) -> None:
    chosen = nearest_bucket(height_px, width_px)

    def distance(bucket: tuple[int, int]) -> float:
        return abs(math.log(bucket[0] / bucket[1]) - math.log(height_px / width_px))

    assert distance(chosen) == min(map(distance, SDXL_BUCKETS))


def test_nearest_bucket_of_an_empty_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 px"):
        nearest_bucket(0, 100)


def test_parse_area_reads_height_by_width_and_refuses_anything_else() -> None:
    assert parse_area("512x768") == 512 * 768
    for text in ("512", "512x", "0x9", "-1x9", "axb", "5x5x5", "٣x5"):
        with pytest.raises(ConfigError, match="area"):
            parse_area(text)


def test_generated_buckets_at_the_papers_area_are_in_the_papers_table() -> None:
    generated = generate_buckets((1024, 1024), 64)
    assert len(generated) == 33
    assert [bucket for bucket in SDXL_BUCKETS if bucket in generated] == list(generated)


@given(st.integers(64, 1024), st.sampled_from([8, 16, 64]), st.floats(1, 6))
def test_generated_buckets_are_symmetric_multiples_within_their_limits(
    side_px: int, step_px: int, max_aspect: float
) -> None:
    buckets = generate_buckets(side_px**2, step_px, max_aspect=max_aspect)
    assert buckets
    assert set(buckets) == {(width, height) for height, width in buckets}
    for height_px, width_px in buckets:
        assert height_px % step_px == width_px % step_px == 0
        assert height_px * width_px <= side_px**2
        assert max(height_px, width_px) <= max_aspect * min(height_px, width_px)


def test_generated_buckets_of_no_area_are_refused() -> None:
    with pytest.raises(ConfigError, match="buckets"):
        generate_buckets((4, 4), 8)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_small_pictures_go_to_the_largest_stage_that_does_not_enlarge(
    height_px: int, width_px: int
) -> None:
    stages = [generate_buckets((side, side), 64) for side in (1024, 512, 256)]
    chosen = choose_bucket(height_px, width_px, stages)
    candidates = [nearest_bucket(height_px, width_px, stage) for stage in stages]
    fitting = [b for b in candidates if b[0] <= height_px and b[1] <= width_px]
    assert chosen == (fitting[0] if fitting else candidates[-1])


@given(
    st.dictionaries(st.sampled_from(SDXL_BUCKETS), st.integers(0, 50), min_size=1),
    st.integers(0, 100),
)
def test_merged_buckets_are_thick_enough_and_every_bucket_has_a_place(
    counts: dict[tuple[int, int], int], least: int
) -> None:
    merged = merge_thin_buckets(counts, least)
    assert set(merged) == set(counts)
    totals = dict.fromkeys(merged.values(), 0)
    for bucket, target in merged.items():
        assert merged[target] == target
        totals[target] += counts[bucket]
    assert sum(totals.values()) == sum(counts.values())
    assert len(totals) == 1 or min(totals.values()) >= least


def test_thin_bucket_goes_to_the_neighbour_of_its_own_stage() -> None:
    counts = {(1024, 1024): 50, (960, 1088): 1, (512, 512): 90, (480, 544): 99}
    assert merge_thin_buckets(counts, 10)[960, 1088] == (1024, 1024)
