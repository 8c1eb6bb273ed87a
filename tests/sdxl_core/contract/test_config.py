"""Recipes are read strictly, written completely, and compared by what they produce."""

import dataclasses
import pickle
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.config import (
    Location,
    config,
    diff_toml,
    fingerprint,
    load_toml,
    options,
    read_recipe,
    refuse_mismatch,
    to_toml,
)
from sdxl_core.contract.errors import ConfigError


@config
class How:
    slots: int = 4
    retries: int = 3


@config
class Defaults:
    steps: int = 30
    guidance_scale: float = 5.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be >= 1, got {self.steps}")


@config
class PaintConfig:
    prompts: Location
    out: Annotated[Location, "some other library's marker"] = "out"
    model: str = "tiny"
    sampler: Literal["euler", "heun"] = "euler"
    note: str | None = None
    limit: float | None = None
    sizes: tuple[int, ...] = (64, 96)
    weights: list[float] = dataclasses.field(default_factory=list)
    exact: bool = True
    defaults: Defaults = Defaults(guidance_scale=7.5)
    how: How = How()


def write(folder: Path, text: str) -> Path:
    path = folder / "paint.toml"
    path.write_text(text)
    return path


def test_recipe_with_nested_tables_is_read_into_the_dataclass(tmp_path: Path) -> None:
    text = 'prompts = "p.csv"\nlimit = 5\nsizes = [8]\n[defaults]\nsteps = 4\n[how]\nslots = 2'
    loaded = load_toml(PaintConfig, write(tmp_path, text))
    assert loaded == PaintConfig(
        prompts="p.csv",
        limit=5.0,
        sizes=(8,),
        defaults=Defaults(steps=4, guidance_scale=7.5),
        how=How(slots=2),
    )
    assert isinstance(loaded.limit, float)


def test_nested_table_of_a_recipe_keeps_the_outer_defaults_it_does_not_name(tmp_path: Path) -> None:
    values = read_recipe(PaintConfig, write(tmp_path, "[defaults]\nsteps = 4"))
    assert values == {"defaults": Defaults(steps=4, guidance_scale=7.5)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("smapler = 'euler'", "smapler: unknown key; did you mean sampler?"),
        ("slots = 3", "slots: unknown key; did you mean how.slots?"),
        ("[how]\nslot = 3", "how.slot: unknown key; did you mean how.slots?"),
        ("zzz = 3", "zzz: unknown key"),
        ("how = 3", "how: "),
        ("[how]\nslots = '20'", "how.slots: input should be a valid integer, found '20'"),
        ("[how]\nslots = 20.7", "how.slots: input should be a valid integer, found 20.7"),
        ("[how]\nslots = true", "how.slots: input should be a valid integer, found True"),
        ("exact = 1", "exact: input should be a valid boolean, found 1"),
        ("limit = true", "limit: input should be a valid number, found True"),
        ("sampler = 'eule'", "sampler: input should be 'euler' or 'heun', found 'eule'"),
        ("sizes = [1, 'x']", "sizes.1: input should be a valid integer, found 'x'"),
        ("note = 2024-01-01", "note: dates and times are not used here"),
        ("[defaults]\nsteps = 0", "defaults: steps must be >= 1, got 0"),
        ("model = ", "is not TOML"),
    ],
)
def test_wrong_recipe_is_refused_with_file_key_and_what_was_found(
    tmp_path: Path, line: str, expected: str
) -> None:
    path = write(tmp_path, line)
    with pytest.raises(ConfigError) as caught:
        read_recipe(PaintConfig, path)
    assert f"{path}: {expected}" in str(caught.value)


def test_all_errors_of_a_recipe_are_reported_at_once(tmp_path: Path) -> None:
    text = "mdoel = 'x'\nexact = 1\n[how]\nslots = 'x'\nretry = 1\n[defaults]\nsteps = -1"
    with pytest.raises(ConfigError) as caught:
        read_recipe(PaintConfig, write(tmp_path, text))
    keys = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert keys == ["mdoel", "exact", "defaults", "how.slots", "how.retry"]


def test_missing_required_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompts: is required"):
        load_toml(PaintConfig, write(tmp_path, ""))


def test_recipe_that_is_not_there_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        load_toml(PaintConfig, tmp_path / "nowhere.toml")


texts = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.floats(allow_nan=False)
paint_configs = st.builds(
    PaintConfig,
    prompts=texts,
    model=texts,
    sampler=st.sampled_from(["euler", "heun"]),
    note=st.none() | texts,
    limit=st.none() | numbers | st.integers(-(2**53), 2**53),
    sizes=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3).map(tuple),
    weights=st.lists(numbers | st.integers(-9, 9), max_size=3),
    exact=st.booleans(),
    defaults=st.builds(Defaults, steps=st.integers(1, 99), guidance_scale=st.integers(0, 9)),
    how=st.builds(How, slots=st.integers(1, 9)),
)


@given(value=paint_configs)
def test_toml_of_any_config_loads_back_equal_with_an_equal_fingerprint(
    tmp_path_factory: pytest.TempPathFactory, value: PaintConfig
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "paint.toml"
    path.write_bytes(to_toml(value).encode())
    loaded = load_toml(PaintConfig, path)
    assert loaded == value
    assert to_toml(loaded) == to_toml(value)
    assert fingerprint(loaded) == fingerprint(value)


@given(value=paint_configs, slots=st.integers(), place=texts)
def test_fingerprint_ignores_how_and_locations(value: PaintConfig, slots: int, place: str) -> None:
    moved = dataclasses.replace(value, prompts=place, out=place, how=How(slots=slots))
    assert fingerprint(moved) == fingerprint(value)


@pytest.mark.parametrize(
    "change",
    [{"model": "big"}, {"sizes": ()}, {"note": ""}, {"defaults": Defaults()}, {"exact": False}],
)
def test_fingerprint_changes_with_everything_else(change: dict[str, object]) -> None:
    value = PaintConfig(prompts="p.csv")
    assert fingerprint(dataclasses.replace(value, **change)) != fingerprint(value)


def test_fingerprint_changes_with_the_identities_of_what_lies_at_the_locations() -> None:
    value = PaintConfig(prompts="p.csv")
    digests = {fingerprint(value), fingerprint(value, model="a"), fingerprint(value, prompts="a")}
    assert len(digests) == 3


def test_fingerprint_is_the_same_in_every_version() -> None:
    assert fingerprint(PaintConfig(prompts="p.csv")) == "1996a7b837a05c4d"


def test_resume_with_other_how_and_locations_is_accepted() -> None:
    begun = PaintConfig(prompts="/a/p.csv", out="x", how=How(slots=9, retries=0))
    refuse_mismatch(to_toml(begun), PaintConfig(prompts="/b/p.csv"), out="x")


def test_resume_that_would_produce_something_else_is_refused_with_the_difference() -> None:
    begun = PaintConfig(prompts="p.csv", sampler="heun", limit=2.0, how=How(slots=9))
    now = PaintConfig(prompts="p.csv", note="hi", defaults=Defaults(steps=9, guidance_scale=7.5))
    with pytest.raises(ConfigError) as caught:
        refuse_mismatch(to_toml(begun), now, out="s3://b/run")
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("s3://b/run was begun with other settings")
    assert [line.strip() for line in lines[:-1]] == [
        'sampler: "heun" -> "euler"',
        "limit: 2.0 -> (not set)",
        "defaults.steps: 30 -> 9",
        'note: (not set) -> "hi"',
    ]
    assert "another OUT" in lines[-1]


def test_difference_of_two_texts_lists_dotted_keys() -> None:
    assert diff_toml("a = 1\n[how]\nslots = 2", "a = 1\n[how]\nslots = 3") == ["how.slots: 2 -> 3"]


def test_none_that_toml_cannot_say_is_refused_rather_than_lost() -> None:
    @config
    class Pair:
        refiner: str | None = "auto"

    with pytest.raises(TypeError, match=r"Pair\.refiner is None"):
        to_toml(Pair(refiner=None))


def test_configs_are_frozen_keyword_only_and_travel_between_processes() -> None:
    value = PaintConfig(prompts="p.csv")
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.model = "x"  # type: ignore[misc]
    with pytest.raises(TypeError):
        PaintConfig("p.csv")  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(value)) == value


def test_options_are_the_dotted_names_with_type_and_default() -> None:
    found = {option.name: option for option in options(PaintConfig)}
    assert found["prompts"].default == ""
    assert found["how.slots"].default == "4"
    assert found["how.slots"].type == "int"
    assert found["defaults.guidance_scale"].default == "7.5"
    assert found["weights"].default == "[]"
    assert found["note"].type == "str | None"
