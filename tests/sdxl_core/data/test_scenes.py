"""Scenes: words and back, the held-out tenth, arrangements that fulfil their caption, drawing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.data.scene_captions import (
    PALETTE,
    Description,
    Thing,
    describe,
    is_held_out,
    parse_caption,
    random_description,
)
from sdxl_core.data.scenes import caption, draw_scene, place_scene, random_scene

seeds = st.integers(0, 2**32 - 1)


def test_describe_writes_the_sentence_of_the_readme() -> None:
    description = Description(
        kind="relation",
        things=(
            Thing(shape="circle", colour="red", size="large"),
            Thing(shape="square", colour="blue", size="small"),
        ),
        relation="left of",
        background="yellow",
    )
    assert (
        describe(description)
        == "a large red circle left of a small blue square, on a yellow background"
    )


@given(seeds)
def test_parse_caption_reads_back_what_describe_wrote(seed: int) -> None:
    description = random_description(np.random.default_rng(seed))
    assert parse_caption(describe(description)) == description


@pytest.mark.parametrize(
    "text", ["", "an astronaut", "a red", "five red circles", "a red circle on"]
)
def test_parse_caption_of_other_text_is_none(text: str) -> None:
    assert parse_caption(text) is None


def test_held_out_captions_are_about_a_tenth() -> None:
    rng = np.random.default_rng(0)
    share = np.mean([is_held_out(describe(random_description(rng))) for _ in range(3000)])
    assert 0.08 < share < 0.12


@given(seeds)
def test_random_scene_is_never_held_out(seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed), height_px=128, width_px=128)
    assert not is_held_out(caption(scene))


@given(seeds, st.sampled_from([(128, 128), (104, 152), (160, 96)]))
def test_place_scene_keeps_objects_inside_and_apart(seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    scene = place_scene(rng, random_description(rng), height_px=size[0], width_px=size[1])
    for item in scene.objects:
        assert item.radius < item.centre_y < scene.canvas_height - item.radius
        assert item.radius < item.centre_x < scene.canvas_width - item.radius
    for i, first in enumerate(scene.objects):
        for second in scene.objects[:i]:
            gap = max(abs(first.centre_y - second.centre_y), abs(first.centre_x - second.centre_x))
            assert gap > first.radius + second.radius


def test_draw_scene_same_scene_gives_the_same_picture_at_the_asked_size() -> None:
    scene = random_scene(np.random.default_rng(3), height_px=104, width_px=152)
    picture = draw_scene(scene, 104, 152)
    assert picture.shape == (104, 152, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, draw_scene(scene, 104, 152))
    assert tuple(picture[0, 0]) == PALETTE[scene.background]


def test_draw_scene_at_twice_the_size_averages_to_the_same_picture() -> None:
    scene = random_scene(np.random.default_rng(4), height_px=128, width_px=128)
    large = draw_scene(scene, 256, 256).reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(large - draw_scene(scene, 128, 128)).mean() < 1.0
