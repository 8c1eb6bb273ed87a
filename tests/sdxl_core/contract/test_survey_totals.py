"""Parts add up to the whole, wherever the cuts are."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.contract.prompts import PromptDefaults
from sdxl_core.contract.survey import ID_CLAIM, survey_part
from sdxl_core.contract.survey_totals import duplicate_rows, merge_surveys, repeated_claims

DEFAULTS = PromptDefaults()


def survey_in_parts(table, cuts):
    bounds = [0, *sorted(cut for cut in cuts if cut < table.num_rows), table.num_rows]
    return [
        survey_part(
            table.slice(start, stop - start),
            first_row=start,
            defaults=DEFAULTS,
            run_seed=0,
            part=part,
        )
        for part, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def rows_with_ids(ids, **columns):
    return pa.table({"id": pa.array(ids, pa.string()), "prompt": ["a cat"] * len(ids), **columns})


def as_pairs(duplicates):
    return sorted(tuple(pair) for pairs in duplicates.values() for pair in pairs.tolist())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([None, "a", "b", "0", "3"]), max_size=12), st.sets(st.integers(1, 11))
)
def test_duplicates_are_every_later_row_with_an_id_wherever_the_parts_are_cut(ids, cuts):
    parts = survey_in_parts(rows_with_ids(ids), cuts)
    resolved = [str(row) if row_id is None else row_id for row, row_id in enumerate(ids)]
    expected = [
        (row, resolved.index(row_id))
        for row, row_id in enumerate(resolved)
        if resolved.index(row_id) < row
    ]
    found = duplicate_rows(reversed(parts))
    assert as_pairs(found) == expected
    for part in parts:
        rows = found.get(part.part, np.empty((0, 2), int))[:, 0]
        assert ((rows >= part.first_row) & (rows < part.first_row + part.num_rows)).all()
    assert merge_surveys(parts).num_invalid_by_reason.get("duplicate_id", 0) == len(expected)


def test_duplicate_of_a_row_that_fails_by_itself_is_a_duplicate_still():
    table = rows_with_ids(["a", "a", "a"], steps=[0, 20, 0])
    survey = merge_surveys(survey_in_parts(table, {1}))
    assert as_pairs(survey.duplicates) == [(1, 0)]
    assert survey.num_invalid_by_reason == {"duplicate_id": 1, "invalid_steps": 2}


def test_ids_that_share_half_of_their_hash_are_different_ids():
    claims = np.array([(0, 5, 1), (1, 5, 2), (2, 5, 1), (3, 6, 1), (4, 5, 2)], ID_CLAIM)
    assert repeated_claims(claims).tolist() == [[2, 0], [4, 1]]


@pytest.mark.parametrize("cuts", [set(), {4}, {1, 2, 7}])
def test_merged_survey_does_not_depend_on_the_cuts(cuts):
    table = pa.table({
        "prompt": ["a", "b", "a", None, "c", "c", "a\0", "d"],
        "height": [512, 512, 64, 64, 64, 512, 512, 1],
        "steps": [1, 2, 3, 4, 5, 6, 7, 8],
        "id": ["0", "1", "2", "3", "4", "1", "6", "7"],
    })  # fmt: skip
    survey = merge_surveys(survey_in_parts(table, cuts))
    assert (survey.num_rows, survey.num_invalid, survey.num_distinct_prompts) == (8, 4, 3)
    assert survey.num_invalid_by_reason == {
        "duplicate_id": 1, "invalid_prompt": 1, "invalid_size": 1, "prompt_missing": 1,
    }  # fmt: skip
    work = [(w.height, w.width, w.num_rows, w.num_base_evaluations) for w in survey.work]
    assert work == [(64, 1024, 2, 8), (512, 1024, 3, 9)]
    assert [(e.reason, e.row) for e in survey.examples] == [
        ("duplicate_id", 5), ("invalid_prompt", 6), ("invalid_size", 7), ("prompt_missing", 3),
    ]  # fmt: skip


def test_merged_survey_keeps_three_examples_of_a_reason_in_order():
    parts = survey_in_parts(pa.table({"prompt": ["a"] * 9, "steps": [0] * 9}), {2, 3})
    assert [example.row for example in merge_surveys(list(reversed(parts))).examples] == [0, 1, 2]


def test_merged_survey_of_nothing_is_empty_and_becomes_json():
    assert json.loads(json.dumps(merge_surveys([]).to_json()))["num_rows"] == 0
    table = pa.table({"prompt": ["a", None]})
    text = json.dumps(merge_surveys(survey_in_parts(table, {1})).to_json())
    assert json.loads(text)["num_invalid_by_reason"] == {"prompt_missing": 1}
