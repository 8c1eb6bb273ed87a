import numpy as np
import pytest
import torch
from torch.nn import functional

from sdxl_core.data.scene_captions import PALETTE, SHAPES, SIZES, is_held_out
from sdxl_core.data.scene_checker import nearest_colour
from sdxl_core.data.scenes import draw_scene, random_scene
from sdxl_core.nets.tokenizer import PAD_ID_TEXT_2, tokenize
from sdxl_core.training.scene_layout import (
    FIRST_CELL_POSITION,
    GRID_SIDE,
    NOTHING,
    NUM_CELLS,
    LayoutHead,
    draw_layouts,
    layout_cells,
    place_loss,
    place_waves,
)

BUCKETS = {(128, 128): 0.5, (96, 160): 0.5}


def test_cells_say_what_the_drawing_shows_at_their_centres() -> None:
    rng = np.random.default_rng(3)
    num_inside = 0
    for height_px, width_px in 10 * list(BUCKETS):
        scene = random_scene(rng, height_px=height_px, width_px=width_px)
        picture_HWC = draw_scene(scene, height_px, width_px)
        shape_K, colour_K, size_K = layout_cells(scene)
        for cell in range(NUM_CELLS):
            row, column = divmod(cell, GRID_SIDE)
            y_px = int((row + 0.5) / GRID_SIDE * height_px)
            x_px = int((column + 0.5) / GRID_SIDE * width_px)
            drawn = nearest_colour(picture_HWC[y_px, x_px])
            if shape_K[cell] == NOTHING:
                assert drawn == scene.background
                assert colour_K[cell] == size_K[cell] == NOTHING
            elif SHAPES[int(shape_K[cell])] == "square":
                num_inside += drawn == list(PALETTE)[int(colour_K[cell])]
    assert num_inside > 20


def test_cells_say_the_size_that_the_caption_names_and_no_other() -> None:
    rng = np.random.default_rng(4)
    num_said = 0
    for _ in range(60):
        scene = random_scene(rng, height_px=128, width_px=128, kind="relation")
        shape_K, _, size_K = layout_cells(scene)
        named = {thing.size for thing in scene.description.things} - {None}
        inside_K = shape_K != NOTHING
        assert {list(SIZES)[i] for i in size_K[size_K != NOTHING]} <= named
        if None not in {thing.size for thing in scene.description.things}:
            num_said += 1
            assert (size_K[inside_K] != NOTHING).all()
        if not named:
            assert (size_K == NOTHING).all()
    assert num_said > 5


def test_layouts_come_from_captions_that_are_not_held_out_and_end_before_the_cells() -> None:
    layouts = draw_layouts(200, buckets=BUCKETS, seed=5)
    assert not any(is_held_out(caption) for caption in layouts.captions)
    assert max(tokenize(layouts.captions, pad_id=PAD_ID_TEXT_2).num_tokens_B) <= FIRST_CELL_POSITION
    assert layouts.shape_NK.shape == layouts.colour_NK.shape == (200, NUM_CELLS)
    assert set(layouts.count_N.tolist()) == {0, 1, 2, 3}


def test_states_that_spell_out_cells_and_places_can_be_read_by_the_head() -> None:
    torch.manual_seed(0)
    layouts = draw_layouts(64, buckets=BUCKETS, seed=6)
    head_sizes = LayoutHead(1).num_classes
    waves_K6 = place_waves()
    head = LayoutHead(waves_K6.shape[1] + sum(head_sizes))
    classes = (
        (layouts.shape_NK != NOTHING).long(),
        layouts.shape_NK.clamp(min=0),
        layouts.colour_NK.clamp(min=0),
        layouts.background_N[:, None].expand(-1, NUM_CELLS),
        layouts.count_N[:, None].expand(-1, NUM_CELLS),
        layouts.size_NK.clamp(min=0),
    )
    spelled = [
        functional.one_hot(part_NK, size).float()
        for part_NK, size in zip(classes, head_sizes, strict=True)
    ]
    places_NK6 = 5.0 * waves_K6.expand(64, -1, -1)
    states_NTD = torch.zeros(64, FIRST_CELL_POSITION + NUM_CELLS, head.read.in_features)
    states_NTD[:, FIRST_CELL_POSITION:] = torch.cat([places_NK6, *spelled], dim=-1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    everything_N = torch.arange(64)
    for _ in range(100):
        optimizer.zero_grad()
        loss = head.loss(states_NTD, layouts, everything_N)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    least = float(loss.detach())
    shuffled_N = everything_N.roll(1)
    silent = float(head.loss(torch.zeros_like(states_NTD), layouts, everything_N).detach())
    wrong = float(head.loss(states_NTD[shuffled_N], layouts, everything_N).detach())
    assert least < 0.3
    assert silent > 10 * least
    assert wrong > 10 * least


def test_states_that_spell_no_place_cost_as_much_as_the_waves_are_high() -> None:
    waves_K6 = place_waves()
    assert float(place_loss(5.0 * waves_K6[None])) == pytest.approx(0.0, abs=1e-9)
    silent = float(place_loss(torch.zeros(2, NUM_CELLS, 8)))
    assert silent == pytest.approx(float(2 * waves_K6.square().mean()))
