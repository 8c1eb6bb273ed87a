"""A request is checked when it is made, in a program as in a table."""

import dataclasses
import math
import pickle

import pytest

from sdxl_core.contract.config import load_toml, to_toml
from sdxl_core.contract.errors import ConfigError, RowError
from sdxl_core.contract.prompt_fields import PROMPT_COLUMNS, ColumnError
from sdxl_core.contract.reasons import Reason
from sdxl_core.contract.request import PromptDefaults, Request

BOUNDS = [
    ("seed", 0, 2**63 - 1, -1, 2**63, Reason.INVALID_SEED),
    ("height", 64, 4096, 56, 4104, Reason.INVALID_SIZE),
    ("width", 64, 4096, 1023, 1020, Reason.INVALID_SIZE),
    ("steps", 1, 1000, 0, 1001, Reason.INVALID_STEPS),
    ("guidance_scale", 0.0, 100.0, -0.1, 100.1, Reason.INVALID_GUIDANCE),
    ("guidance_rescale", 0.0, 1.0, -0.1, math.nan, Reason.INVALID_GUIDANCE),
    ("handoff", 0.001, 1.0, 0.0, 1.001, Reason.INVALID_HANDOFF),
    ("strength", 0.001, 1.0, 0.0, math.inf, Reason.INVALID_HANDOFF),
    ("aesthetic_score", 0.0, 10.0, -1.0, 11.0, Reason.INVALID_VALUE),
    ("crop_top", 0, 16384, -8, 16385, Reason.INVALID_SIZE),
]


def test_request_fields_are_the_prompt_columns():
    assert {field.name for field in dataclasses.fields(Request)} == set(PROMPT_COLUMNS)
    own = {"id", "prompt", "seed"}
    assert {f.name for f in dataclasses.fields(PromptDefaults)} == set(PROMPT_COLUMNS) - own


def test_request_defaults_and_run_defaults_are_the_same():
    assert Request(
        prompt="a cat", **dataclasses.asdict(PromptDefaults().for_model(1024))
    ) == Request(prompt="a cat")


@pytest.mark.parametrize(("name", "low", "high", "below", "above", "reason"), BOUNDS)
def test_request_value_at_its_bounds_is_kept_and_beyond_is_refused(
    name, low, high, below, above, reason
):
    for value in (low, high):
        assert getattr(Request(prompt="", **{name: value}), name) == value
    for value in (below, above):
        with pytest.raises(RowError) as caught:
            Request(prompt="", **{name: value})
        assert caught.value.reason == reason
        assert f"'{name}'" in caught.value.detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", True),
        ("steps", "20"),
        ("steps", None),
        ("refiner", "true"),
        ("prompt", None),
        ("id", ""),
    ],
)
def test_request_of_the_wrong_type_is_refused(name, value):
    with pytest.raises(RowError, match=name):
        Request(**{"prompt": "a cat", name: value})


def test_request_numbers_get_the_type_of_their_column():
    request = Request(prompt="a cat", guidance_scale=7, steps=20.0)
    assert (type(request.guidance_scale), type(request.steps)) == (float, int)


def test_request_without_original_and_target_size_has_the_images_own():
    request = Request(prompt="a cat", height=832, width=1216)
    assert (request.original_height, request.original_width) == (832, 1216)
    assert (request.target_height, request.target_width) == (832, 1216)


@pytest.mark.parametrize(
    "half", ["original_height", "original_width", "target_height", "target_width"]
)
def test_request_with_half_a_size_is_refused(half):
    with pytest.raises(RowError, match="other half"):
        Request(prompt="a cat", **{half: 512})


def test_request_negative_sizes_are_all_there_or_none():
    sizes = {
        f"negative_{kind}_{side}": 512
        for kind in ("original", "target")
        for side in ("height", "width")
    }
    request = Request(prompt="a cat", **sizes)
    assert (request.negative_crop_top, request.negative_crop_left) == (0, 0)
    assert Request(prompt="a cat").negative_crop_top is None
    for name in sizes:
        with pytest.raises(RowError, match=name):
            Request(prompt="a cat", **{key: size for key, size in sizes.items() if key != name})
    with pytest.raises(RowError, match="none of the negative ones"):
        Request(prompt="a cat", negative_crop_left=8)


@pytest.mark.parametrize(("scale", "guided"), [(0.0, False), (1.0, False), (1.01, True)])
def test_request_is_guided_above_scale_one(scale, guided):
    assert Request(prompt="a cat", guidance_scale=scale).guided is guided


def test_defaults_out_of_range_are_refused_before_any_row():
    with pytest.raises(ConfigError, match="'steps': found 0"):
        PromptDefaults(steps=0)


def test_defaults_are_read_from_a_recipe_and_written_back(tmp_path):
    recipe = tmp_path / "run.toml"
    recipe.write_text('sampler = "heun"\nstrength = 0.5\n')
    defaults = load_toml(PromptDefaults, recipe)
    assert defaults == PromptDefaults(sampler="heun", strength=0.5)
    recipe.write_text(to_toml(defaults))
    assert load_toml(PromptDefaults, recipe) == defaults
    with pytest.raises(ConfigError, match="k_heun"):
        PromptDefaults(sampler="k_heun")


def test_column_error_travels_between_processes_whole():
    error = ColumnError(Reason.INVALID_STEPS, "steps", "0 (int)", "an integer")
    again = pickle.loads(pickle.dumps(error))  # as Ray does
    assert (again.reason, again.detail, again.column) == (error.reason, error.detail, "steps")
