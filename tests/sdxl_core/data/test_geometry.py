"""Geometry of samples, as numbers; what it does to pixels is in test_conditioning."""

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import SDXL_BUCKETS, Bucket
from sdxl_core.data.geometry import covering_size, plan_geometry

sides = st.integers(1, 5000)
buckets = st.sampled_from(SDXL_BUCKETS)


@given(sides, sides, buckets)
def test_covering_size_covers_with_one_side_exact_and_keeps_the_aspect(
    height: int, width: int, bucket: Bucket
) -> None:
    covered = covering_size((height, width), bucket)
    assert covered[0] >= bucket[0]
    assert covered[1] >= bucket[1]
    assert covered[0] == bucket[0] or covered[1] == bucket[1]
    scale = max(bucket[0] / height, bucket[1] / width)
    assert abs(covered[0] - height * scale) <= 0.5 + 1e-6 * covered[0]
    assert abs(covered[1] - width * scale) <= 0.5 + 1e-6 * covered[1]


@given(sides, sides, buckets, st.text(max_size=8), st.integers(0, 2**63))
def test_geometry_is_a_pure_function_and_its_crop_lies_inside(
    height: int, width: int, bucket: Bucket, key: str, seed: int
) -> None:
    plans = [
        plan_geometry(
            (height, width), bucket, crop="random", key=key, seed=seed, flip_probability=0.5
        )
        for _ in range(2)
    ]
    assert plans[0] == plans[1]
    for place, resized, wanted in zip(
        plans[0].crop_top_left, plans[0].resized_size, bucket, strict=True
    ):
        assert 0 <= place <= resized - wanted


def test_random_crops_reach_every_place_evenly_and_flips_have_their_share() -> None:
    plans = [
        plan_geometry(
            (64, 68), (64, 64), crop="random", key=f"row {index}", seed=7, flip_probability=0.25
        )
        for index in range(4000)
    ]
    counts = collections.Counter(plan.crop_top_left for plan in plans)
    assert set(counts) == {(0, left) for left in range(5)}
    assert min(counts.values()) > 650  # 800 each are expected; five standard deviations are 130
    assert sum(plan.flip for plan in plans) == pytest.approx(1000, abs=140)


def test_geometry_of_an_empty_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 px"):
        plan_geometry((0, 5), (64, 64), crop="center", key="", seed=0)
