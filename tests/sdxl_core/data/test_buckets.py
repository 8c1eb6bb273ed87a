"""The bucket tables and the choice of a bucket."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import SDXL_BUCKETS, TINY_BUCKETS, nearest_bucket


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
