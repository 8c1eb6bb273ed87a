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
