import numpy as np
import pyarrow as pa

from sdxl_core.contract.part_requests import resolve_part
from sdxl_core.contract.prompts import PromptDefaults
from sdxl_core.contract.survey import survey_part
from sdxl_core.contract.survey_totals import merge_surveys

NAMED = {"defaults": PromptDefaults(), "run_seed": 1}


def test_part_is_split_into_requests_and_failures_without_a_row_left():
    table = pa.table({"prompt": ["a", None, "b"], "id": ["x", "y", "z"]})
    part = resolve_part(table, first_row=100, **NAMED)
    assert [(row, request.id) for row, request in part.requests] == [(100, "x"), (102, "z")]
    assert [(row["input_row"], row["id"], row["reason"]) for row in part.failed] == [
        (101, "y", "prompt_missing")
    ]


def test_part_fails_the_duplicates_that_the_survey_found():
    tables = [
        pa.table({"prompt": ["a"], "id": ["x"]}),
        pa.table({"prompt": ["b", "c"], "id": ["y", "x"]}),
    ]
    surveys = [
        survey_part(table, first_row=first_row, part=part, **NAMED)
        for part, (table, first_row) in enumerate(zip(tables, (0, 1), strict=True))
    ]
    duplicates = merge_surveys(surveys).duplicates
    assert {part: pairs.tolist() for part, pairs in duplicates.items()} == {1: [[2, 0]]}
    part = resolve_part(tables[1], first_row=1, duplicates=duplicates[1], **NAMED)
    assert [request.id for _, request in part.requests] == ["y"]
    assert part.failed[0]["reason"] == "duplicate_id"
    assert "row 0 of the input" in part.failed[0]["detail"]


def test_part_without_duplicates_needs_no_list_of_them():
    table = pa.table({"prompt": ["a"]})
    none = np.empty((0, 2), dtype=np.int64)
    assert resolve_part(table, first_row=0, duplicates=none, **NAMED) == resolve_part(
        table, first_row=0, **NAMED
    )


def test_survey_and_part_refuse_the_same_rows_where_there_is_no_refiner():
    table = pa.table(
        {
            "prompt": ["a", "b", "c", "d", None],
            "id": ["w", "x", "y", "x", "z"],
            "refiner": [None, True, False, False, True],
        }
    )
    for refines_by_default, refused in ((False, {"x"}), (True, {"w", "x"})):
        defaults = PromptDefaults(refiner=refines_by_default)
        named = {"first_row": 0, "defaults": defaults, "run_seed": 1}
        found = survey_part(table, has_refiner=False, **named)
        duplicates = merge_surveys([found]).duplicates[0]
        part = resolve_part(table, has_refiner=False, duplicates=duplicates, **named)
        assert found.num_invalid_by_reason == {
            "invalid_handoff": len(refused),
            "prompt_missing": 1,
        }
        reasons = {row["input_row"]: row["reason"] for row in part.failed}
        details = [row["detail"] for row in part.failed if row["reason"] == "invalid_handoff"]
        assert len(details) == len(refused)
        assert all("column 'refiner'" in detail and "--refiner" in detail for detail in details)
        assert (reasons[3], reasons[4]) == ("duplicate_id", "prompt_missing")
        assert found.work.column("refiner").to_pylist() == [False]
        assert survey_part(table, **named).num_invalid_by_reason == {"prompt_missing": 1}
