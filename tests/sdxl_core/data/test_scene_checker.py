"""The checker is right on what was drawn as described and notices every attribute that is not."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.data.scene_captions import (
    PALETTE,
    SHAPES,
    SIZES,
    Description,
    Thing,
    random_description,
)
from sdxl_core.data.scene_checker import (
    SceneVerdict,
    check_scene,
    classify_shape,
    connected_pieces,
    find_objects,
    nearest_colour,
)
from sdxl_core.data.scenes import RgbImage, draw_scene, place_scene

BUCKETS = [(128, 128), (104, 152), (152, 104), (96, 160), (256, 256)]


def _drawn(description: Description, seed: int = 0, size: tuple[int, int] = (128, 128)) -> RgbImage:
    scene = place_scene(
        np.random.default_rng(seed), description, height_px=size[0], width_px=size[1]
    )
    return draw_scene(scene, *size)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(BUCKETS))
def test_check_scene_of_a_drawn_description_is_right(seed: int, size: tuple[int, int]) -> None:
    description = random_description(np.random.default_rng(seed))
    assert check_scene(description, _drawn(description, seed, size)).wrong == ()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_find_objects_names_every_shape_size_and_colour(shape: str, size: str) -> None:
    for colour in PALETTE:
        background = "white" if colour != "white" else "blue"
        thing = Thing(shape=shape, colour=colour, size=size)
        picture = _drawn(Description(kind="one", things=(thing,), background=background))
        finding = find_objects(picture)
        assert finding.background == background
        assert [(o.shape, o.colour, o.size) for o in finding.objects] == [(shape, colour, size)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_check_scene_with_mild_noise_is_still_right(seed: int) -> None:
    rng = np.random.default_rng(seed)
    description = random_description(rng)
    picture = _drawn(description, seed) + rng.normal(0, 5, (128, 128, 3))
    assert check_scene(description, np.clip(picture, 0, 255).astype(np.uint8)).right


PAIR = Description(
    kind="relation",
    things=(
        Thing(shape="circle", colour="red", size="large"),
        Thing(shape="square", colour="blue", size="small"),
    ),
    relation="left of",
    background="yellow",
)


def _with_thing(**changes: str) -> Description:
    return dataclasses.replace(
        PAIR, things=(dataclasses.replace(PAIR.things[0], **changes), PAIR.things[1])
    )


@pytest.mark.parametrize(
    ("drawn", "fault"),
    [
        (_with_thing(shape="star"), "shape"),
        (_with_thing(colour="green"), "colour"),
        (_with_thing(size="small"), "size"),
        (dataclasses.replace(PAIR, relation="right of"), "relation"),
        (dataclasses.replace(PAIR, relation="above"), "relation"),
        (dataclasses.replace(PAIR, background="white"), "background"),
        (dataclasses.replace(PAIR, kind="one", things=PAIR.things[:1], relation=None), "count"),
    ],
)
def test_check_scene_with_one_attribute_changed_names_it(drawn: Description, fault: str) -> None:
    assert check_scene(PAIR, _drawn(drawn)).wrong == (fault,)


def test_check_scene_at_another_position_names_position() -> None:
    thing = Thing(shape="ring", colour="black")
    asked = Description(kind="one", things=(thing,), position="in the top left", background="white")
    drawn = dataclasses.replace(asked, position="in the bottom right")
    assert check_scene(asked, _drawn(drawn)).wrong == ("position",)


def test_check_scene_with_another_count_names_count() -> None:
    thing = Thing(shape="triangle", colour="white")
    three = Description(kind="count", things=(thing,), count=3, background="black")
    assert check_scene(three, _drawn(three)).right
    assert check_scene(three, _drawn(dataclasses.replace(three, count=4))).wrong == ("count",)


def test_check_scene_with_swapped_colours_is_wrong() -> None:
    first, second = PAIR.things
    swapped = dataclasses.replace(
        PAIR,
        things=(
            dataclasses.replace(first, colour=second.colour),
            dataclasses.replace(second, colour=first.colour),
        ),
    )
    verdict: SceneVerdict = check_scene(PAIR, _drawn(swapped))
    assert not verdict.right


def test_check_scene_of_an_empty_picture_counts_no_objects() -> None:
    picture = np.full((128, 128, 3), PALETTE["yellow"], dtype=np.uint8)
    assert check_scene(PAIR, picture).wrong == ("count",)


def test_classify_shape_of_a_bar_is_none() -> None:
    bar = np.zeros((40, 40), dtype=bool)
    bar[10:14, 5:35] = True
    assert classify_shape(bar) is None


def test_connected_pieces_touching_at_a_corner_are_two() -> None:
    mask = np.zeros((6, 6), dtype=bool)
    mask[1:3, 1:3] = True
    mask[3, 3] = True
    assert [int(piece.sum()) for piece in connected_pieces(mask)] == [4, 1]


def test_nearest_colour_of_palette_entries_is_their_name() -> None:
    assert [nearest_colour(rgb) for rgb in PALETTE.values()] == list(PALETTE)
