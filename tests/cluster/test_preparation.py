import json
from pathlib import Path

import numpy as np
import pytest

from cluster.preparation import (
    DUPLICATES_FILE,
    PLAN_FILE,
    duplicates_by_part,
    plan_slots,
    read_plan,
    read_table_plan,
    with_rows_per_part,
    write_plan,
)
from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.survey import survey_part
from sdxl_core.contract.survey_totals import Survey, merge_surveys
from sdxl_core.diffusion.tasks import LaneKey
from sdxl_core.storage.stores import open_store
from sdxl_core.storage.tables import PartPlan, read_part
from tests.flow import kit


def survey(parts: PartPlan) -> Survey:
    """What ``survey_table`` does, without a cluster."""
    surveys = []
    for index in range(parts.num_parts):
        place = parts.part(index)
        surveys.append(
            survey_part(
                read_part(place),
                first_row=place.global_first_row,
                defaults=kit.DEFAULTS,
                run_seed=0,
                part=index,
                file=place.url,
                first_row_in_file=place.first_row,
            )
        )
    return merge_surveys(surveys)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Three files, 23 rows; the id r1 is in every file, and the last file repeats itself."""
    for number, num_rows in enumerate((10, 6, 7)):
        rows = [{"id": f"r{number}-{n}", "prompt": f"p{n}"} for n in range(num_rows)]
        rows[1]["id"] = "r1"
        rows[-1] |= {"width": 128} if number else {"guidance_scale": 1.0}
        kit.write_csv(tmp_path / f"{number}.csv", rows)
    return str(tmp_path)


@pytest.mark.parametrize("rows_per_part", [1, 3, 4, 100])
def test_survey_in_coarse_parts_equals_survey_in_fine_ones(folder: str, rows_per_part: int) -> None:
    parts = read_table_plan(folder, rows_per_part)
    coarse = survey(with_rows_per_part(parts, 20_000))
    fine = survey(parts)
    assert fine.to_json() == coarse.to_json()
    assert fine.num_invalid_by_reason == {"duplicate_id": 2}


@pytest.mark.parametrize("rows_per_part", [1, 3, 4, 100])
def test_duplicates_of_a_coarse_survey_land_on_the_parts_of_the_run(
    folder: str, rows_per_part: int
) -> None:
    parts = read_table_plan(folder, rows_per_part)
    found = duplicates_by_part(survey(with_rows_per_part(parts, 20_000)), parts)
    expected = survey(parts).duplicates
    assert {part: rows.tolist() for part, rows in found.items()} == {
        part: rows.tolist() for part, rows in expected.items()
    }
    for part, pairs in found.items():
        place = parts.part(part)
        rows = range(place.global_first_row, place.global_first_row + place.num_rows)
        assert all(row in rows and first == 1 for row, first in pairs.tolist())


def test_table_plan_cuts_each_file_by_itself(folder: str) -> None:
    parts = read_table_plan(folder, 4)
    sizes = [parts.part(index).num_rows for index in range(parts.num_parts)]
    assert sizes == [4, 4, 2, 4, 2, 4, 3]
    starts = [parts.part(index).global_first_row for index in range(parts.num_parts)]
    assert starts == [0, 4, 8, 10, 14, 16, 20]


def test_table_plan_without_a_wish_keeps_a_small_table_in_several_parts(tmp_path: Path) -> None:
    for num_rows, expected in ((10, 4), (64, 4), (160, 10), (5000, 64)):
        prompts = kit.write_csv(tmp_path / f"{num_rows}.csv", kit.plain_rows(num_rows))
        assert read_table_plan(prompts, 0).rows_per_part == expected


def test_slots_come_from_the_table_alone(folder: str) -> None:
    by_parts = [
        plan_slots(survey(read_table_plan(folder, size)), device="cpu", slots=0, has_refiner=True)
        for size in (1, 7, 100)
    ]
    assert by_parts[0] == by_parts[1] == by_parts[2]
    square = LaneKey(latent_height=8, latent_width=8, guided=True)
    unguided = LaneKey(latent_height=8, latent_width=8, guided=False)
    assert by_parts[0]["base"][square] == 2
    assert by_parts[0]["base"][unguided] == 1
    assert by_parts[0]["refiner"] == {}


def test_slots_that_the_user_fixes_hold_for_every_shape_and_are_checked(folder: str) -> None:
    found = survey(read_table_plan(folder, 4))
    slots = plan_slots(found, device="cuda", slots=8, has_refiner=False)
    assert set(slots["base"].values()) == {8}
    with pytest.raises(ConfigError, match="slots: found 3"):
        plan_slots(found, device="cuda", slots=3, has_refiner=False)


def test_plan_files_bring_back_what_was_written(folder: str, tmp_path: Path) -> None:
    parts = read_table_plan(folder, 4)
    found = survey(parts)
    slots = plan_slots(found, device="cpu", slots=0, has_refiner=False)
    duplicates = duplicates_by_part(found, parts)
    store = open_store(tmp_path / "out")
    assert read_plan(store) is None
    write_plan(store, {"fingerprint": "f", "survey": found.to_json()}, slots, duplicates)
    back = read_plan(store)
    assert back is not None
    plan, slots_back, duplicates_back = back
    assert slots_back == slots
    assert plan["fingerprint"] == "f"
    assert plan["survey"] == json.loads(json.dumps(found.to_json()))
    assert duplicates_back.keys() == duplicates.keys()
    assert all(np.array_equal(duplicates_back[part], duplicates[part]) for part in duplicates)


def test_plan_without_duplicates_comes_back_without_any(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out")
    write_plan(store, {}, {"base": {}}, {})
    assert {file.path for file in store.list()} == {PLAN_FILE, DUPLICATES_FILE}
    assert read_plan(store) == ({"version": 1}, {}, {})
