"""The evaluation's prompts and its counting."""

import numpy as np

from sdxl_core.data.scene_captions import describe, is_held_out
from sdxl_core.data.scenes import RgbImage, draw_scene, place_scene
from sdxl_core.training.scene_evaluation import held_out_descriptions, judge


def _pictures(seed: int) -> list[RgbImage]:
    rng = np.random.default_rng(seed)
    scenes = [
        place_scene(rng, description, height_px=128, width_px=128)
        for description in held_out_descriptions({"one": 6, "relation": 6, "count": 3})
    ]
    return [draw_scene(scene, 128, 128) for scene in scenes]


def test_held_out_descriptions_are_held_out_different_and_repeatable() -> None:
    descriptions = held_out_descriptions({"one": 30, "relation": 30, "count": 15})
    texts = [describe(description) for description in descriptions]
    assert all(map(is_held_out, texts))
    assert len(set(texts)) == 75
    assert descriptions == held_out_descriptions({"one": 30, "relation": 30, "count": 15})


def test_judge_of_drawn_scenes_is_fully_right() -> None:
    descriptions = held_out_descriptions({"one": 6, "relation": 6, "count": 3})
    scores, verdicts = judge(descriptions, _pictures(0))
    assert {kind: score.accuracy for kind, score in scores.items()} == {
        "one": 1.0,
        "relation": 1.0,
        "count": 1.0,
    }
    assert len(verdicts) == 15


def test_judge_of_pictures_of_other_prompts_is_not() -> None:
    descriptions = held_out_descriptions({"one": 6, "relation": 6, "count": 3})
    scores, _ = judge(descriptions, _pictures(0)[::-1])
    assert sum(score.num_right for score in scores.values()) <= 2
    assert scores["relation"].num_wrong
