"""Rows of every reader become the same requests, or are refused with words to act on."""

import pytest

from sdxl_core.contract.errors import RowError, SchemaError
from sdxl_core.contract.prompts import (
    PromptDefaults,
    Request,
    check_columns,
    resolve_partly,
    resolve_row,
)
from sdxl_core.contract.reasons import Reason
from sdxl_core.contract.seeds import row_seed

DEFAULTS = PromptDefaults()


def resolve(row, *, defaults=DEFAULTS, index=0):
    return resolve_row(row, defaults=defaults, run_seed=1, index=index)


def test_row_with_a_prompt_alone_gets_the_runs_defaults():
    defaults = PromptDefaults(steps=7, negative_prompt="blurry", width=512)
    request = resolve({"prompt": "a cat"}, defaults=defaults, index=41)
    assert request == Request(
        prompt="a cat",
        id="41",
        seed=row_seed(1, "41"),
        steps=7,
        negative_prompt="blurry",
        width=512,
    )


def test_row_of_a_csv_file_is_the_row_of_a_parquet_file():
    typed = {
        "id": "a",
        "prompt": "7",
        "seed": 5,
        "steps": 20,
        "guidance_scale": 7.5,
        "refiner": True,
    }
    text = {"id": "a", "prompt": "7", "seed": "5", "steps": "20.0", "guidance_scale": "7.5",
            "refiner": "TRUE", "strength": "", "sampler": ""}  # fmt: skip
    assert resolve(text) == resolve(typed)


def test_row_of_diffusiondb_is_understood():
    row = {"image_name": "a.png", "p": "a cat", "seed": 3378295984, "step": 50, "cfg": 7.0,
           "sampler": 3, "width": 512, "height": 768}  # fmt: skip
    request = resolve(row)
    assert (request.prompt, request.steps, request.guidance_scale) == ("a cat", 50, 7.0)
    assert (request.sampler, request.height, request.width) == ("euler", 768, 512)


def test_row_seed_depends_on_the_id_and_not_on_the_place():
    assert resolve({"id": "x", "prompt": ""}, index=1) == resolve(
        {"id": "x", "prompt": ""}, index=9
    )
    assert resolve({"id": 7, "prompt": ""}).seed == resolve({"id": "7", "prompt": ""}).seed


def test_row_with_an_empty_prompt_is_a_row_with_a_prompt():
    request = resolve({"prompt": "", "negative_prompt": ""})
    assert (request.prompt, request.negative_prompt, request.prompt_2) == ("", "", None)


@pytest.mark.parametrize(("row", "reason", "words"), [
    ({}, Reason.PROMPT_MISSING, ["'prompt'", "nothing"]),
    ({"prompt": None}, Reason.PROMPT_MISSING, ["'prompt'"]),
    ({"prompt": 5}, Reason.INVALID_PROMPT, ["5 (int)", "text"]),
    ({"prompt": "x" * 1_000_000}, Reason.INVALID_PROMPT, ["1000000 characters", "at most 100000"]),
    ({"prompt": "a cat\0"}, Reason.INVALID_PROMPT, [r"'\x00' at position 5"]),
    ({"prompt": "", "negative_prompt_2": "\ud800"}, Reason.INVALID_PROMPT, ["'negative_prompt_2'"]),
    ({"prompt": "", "id": "a\nb"}, Reason.INVALID_ID, [r"'a\nb'", "200 characters"]),
    ({"prompt": "", "width": 1023}, Reason.INVALID_SIZE, ["'width'", "1023", "multiple of 8"]),
    ({"prompt": "", "sampler": "Eular"}, Reason.INVALID_SAMPLER, ["did you mean 'euler'?"]),
    ({"prompt": "", "steps": "20.5"}, Reason.INVALID_STEPS, ["'20.5'", "from 1 to 1000"]),
    ({"prompt": "", "cfg": "high"}, Reason.INVALID_GUIDANCE, ["'guidance_scale'", "'high'"]),
    ({"prompt": "", "refiner": "maybe"}, Reason.INVALID_VALUE, ["'refiner'", "true or false"]),
    ({"prompt": "", "handoff": 0}, Reason.INVALID_HANDOFF, ["above 0 and up to 1"]),
    ({"prompt": "", "seed": -1}, Reason.INVALID_SEED, ["-1", "2**63 - 1"]),
    ({"prompt": "", "_unreadable": "line 7: no JSON"}, Reason.UNREADABLE_ROW, ["line 7: no JSON"]),
])  # fmt: skip
def test_row_that_cannot_be_used_is_refused_with_words_to_act_on(row, reason, words):
    with pytest.raises(RowError) as caught:
        resolve(row)
    assert caught.value.reason == reason
    assert all(word in caught.value.detail for word in words), caught.value.detail
    assert len(caught.value.detail) < 300


def test_row_refused_in_an_earlier_run_stays_refused_until_its_status_is_cleared():
    earlier = {"prompt": "a cat", "steps": None, "status": "failed", "reason": "invalid_steps",
               "detail": "column 'steps': found 0"}  # fmt: skip
    with pytest.raises(RowError, match="earlier run: column 'steps': found 0") as first:
        resolve(earlier)
    with pytest.raises(RowError) as second:  # a third run does not pile up the words
        resolve(earlier | {"detail": first.value.detail})
    assert second.value.detail == first.value.detail
    assert resolve(earlier | {"status": None}).steps == DEFAULTS.steps


def test_row_that_failed_for_a_passing_reason_is_tried_again():
    assert (
        resolve({"prompt": "a cat", "status": "failed", "reason": "out_of_memory"}).prompt
        == "a cat"
    )


def test_partly_resolved_row_keeps_what_can_be_used():
    row = {"id": "x", "prompt": "a cat", "steps": 0, "width": "wide", "cfg": "7"}
    known = resolve_partly(row, defaults=DEFAULTS, run_seed=1, index=3)
    assert (known["steps"], known["width"]) == (None, None)
    assert (known["id"], known["guidance_scale"], known["height"]) == ("x", 7.0, 1024)


def test_partly_resolved_row_without_a_usable_id_has_no_seed_of_its_own():
    known = resolve_partly({"prompt": "", "id": "\n"}, defaults=DEFAULTS, run_seed=1, index=3)
    assert (known["id"], known["seed"]) == (None, None)


def test_table_without_a_prompt_column_is_refused_with_a_suggestion():
    with pytest.raises(SchemaError, match=r"a\.csv: .*'Promt', 'id'.*Rename 'Promt'"):
        check_columns(["Promt", "id"], file="a.csv")
    with pytest.raises(SchemaError, match="Rename 'TEXT'"):
        check_columns(["url", "TEXT"], file="a.csv")


def test_table_with_a_column_under_two_names_is_refused():
    with pytest.raises(SchemaError, match="'step' and 'steps'"):
        check_columns(["prompt", "steps", "step"], file="a.csv")
    with pytest.raises(SchemaError, match="twice: seed"):
        check_columns(["prompt", "seed", "seed"], file="a.csv")


@pytest.mark.parametrize(
    "names", [["prompt"], ["p", "cfg", "step"], ["prompt", "anything", "status"]]
)
def test_table_with_a_prompt_column_is_accepted(names):
    check_columns(names, file="a.parquet")
