"""Samples carry the micro-conditioning of what was really done to the picture."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.data.scene_captions import parse_caption
from sdxl_core.data.scene_checker import check_scene
from sdxl_core.data.scene_samples import render_sample, spoil

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_render_sample_plain_is_a_whole_scene_at_its_own_size(seed: int) -> None:
    sample = render_sample(
        np.random.default_rng(seed), height_px=104, width_px=152, resized_share=0, cropped_share=0
    )
    description = parse_caption(sample.caption)
    assert description is not None
    assert check_scene(description, sample.rgb_HWC).right
    assert sample.original_size_px == sample.target_size_px == (104, 152)
    assert sample.crop_px == (0, 0)
    assert sample.aesthetic >= 6.0


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_render_sample_cropped_stays_inside_the_larger_picture(seed: int) -> None:
    sample = render_sample(
        np.random.default_rng(seed), height_px=96, width_px=160, resized_share=0, cropped_share=1
    )
    assert sample.rgb_HWC.shape == (96, 160, 3)
    for crop, original, target in zip(
        sample.crop_px, sample.original_size_px, (96, 160), strict=True
    ):
        assert 0 <= crop <= original - target


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_render_sample_resized_tells_the_original_size(seed: int) -> None:
    sample = render_sample(
        np.random.default_rng(seed), height_px=128, width_px=128, resized_share=1, cropped_share=0
    )
    assert sample.rgb_HWC.shape == (128, 128, 3)
    assert 38 <= sample.original_size_px[0] <= 256


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_render_sample_spoilt_has_a_low_score_and_differs_from_the_clean_one(seed: int) -> None:
    spoilt, clean = (
        render_sample(
            np.random.default_rng(seed),
            height_px=128,
            width_px=128,
            resized_share=0,
            cropped_share=0,
            spoilt_share=share,
        )
        for share in (1.0, 0.0)
    )
    assert spoilt.caption == clean.caption
    assert spoilt.aesthetic <= 3.0 < clean.aesthetic
    assert np.abs(spoilt.rgb_HWC.astype(int) - clean.rgb_HWC).mean() > 0.1


def test_spoil_keeps_shape_and_type() -> None:
    rng = np.random.default_rng(0)
    for badly in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        picture = rng.integers(0, 255, (64, 80, 3)).astype(np.uint8)
        spoilt = spoil(picture, rng, badly=badly)
        assert spoilt.shape == picture.shape
        assert spoilt.dtype == np.uint8
