"""The survey by columns says of every row what the row by itself says."""

from collections import Counter

import pyarrow as pa
from hypothesis import given, settings

from sdxl_core.contract.columns import read_rows
from sdxl_core.contract.errors import RowError
from sdxl_core.contract.prompts import PromptDefaults, resolve_partly, resolve_row
from sdxl_core.contract.survey import survey_part
from tests.sdxl_core.contract.prompt_tables import conditioning_tables, good_tables, prompt_tables

DEFAULTS = PromptDefaults(handoff=0.75)
WORK_NAMES = ("num_rows", "num_base_evaluations", "num_refiner_evaluations")


def survey(table, *, first_row=0, **named):
    return survey_part(table, first_row=first_row, defaults=DEFAULTS, run_seed=1, **named)


def resolve_all(table, first_row=0):
    """Row by row, the slow way: requests and errors by row."""
    requests, errors = {}, {}
    for row, cells in enumerate(read_rows(table), start=first_row):
        try:
            requests[row] = resolve_row(cells, defaults=DEFAULTS, run_seed=1, index=row)
        except RowError as error:
            errors[row] = error
    return requests, errors


def evaluations(request):
    """(base, refiner) evaluations of one request, written out case by case."""
    per_step = 2 if request.sampler == "heun" else 1
    if not request.refiner:
        return request.steps * per_step, 0
    if request.strength is not None:
        return request.steps * per_step, int(request.steps * request.strength) * per_step
    base_steps = round(request.steps * request.handoff)
    return base_steps * per_step, (request.steps - base_steps) * per_step


def assert_survey_agrees_with_rows(table):
    requests, errors = resolve_all(table, first_row=10)
    found = survey(table, first_row=10)

    assert found.num_rows == table.num_rows
    assert found.invalid_rows.tolist() == sorted(errors)
    assert found.num_invalid_by_reason == Counter(str(e.reason) for e in errors.values())
    assert {e.detail for e in found.examples} <= {e.detail for e in errors.values()}
    assert len(found.prompt_hashes) == len({request.prompt for request in requests.values()})

    expected = Counter()
    for request in requests.values():
        key = (request.height, request.width, request.guided, request.refiner)
        for name, count in zip(WORK_NAMES, (1, *evaluations(request)), strict=True):
            expected[key, name] += count
    assert Counter({
        ((w["height"], w["width"], w["guided"], w["refiner"]), name): w[name]
        for w in found.work.to_pylist() for name in WORK_NAMES
    }) == expected  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(prompt_tables())
def test_survey_of_any_table_agrees_with_its_rows_one_by_one(table):
    assert_survey_agrees_with_rows(table)


@settings(max_examples=60, deadline=None)
@given(good_tables())
def test_survey_of_good_rows_adds_up_their_work(table):
    assert_survey_agrees_with_rows(table)
    assert len(survey(table).invalid_rows) == 0


@settings(max_examples=40, deadline=None)
@given(conditioning_tables())
def test_survey_of_half_given_sizes_agrees_with_its_rows_one_by_one(table):
    assert_survey_agrees_with_rows(table)


def test_survey_of_an_earlier_runs_output_agrees_with_its_rows_one_by_one():
    table = pa.table({
        "prompt": ["a"] * 5,
        "steps": [None] * 5,
        "status": ["ok", "failed", "failed", None, "failed"],
        "reason": [None, "invalid_steps", "out_of_memory", "invalid_steps", None],
    })  # fmt: skip
    assert_survey_agrees_with_rows(table)
    assert survey(table).invalid_rows.tolist() == [1]


@settings(max_examples=40, deadline=None)
@given(prompt_tables())
def test_survey_claims_equal_hashes_for_equal_ids_only(table):
    ids = {
        row: resolve_partly(cells, defaults=DEFAULTS, run_seed=1, index=row)["id"]
        for row, cells in enumerate(read_rows(table))
    }
    claimed = survey(table).id_claims
    assert claimed["row"].tolist() == [row for row, row_id in ids.items() if row_id is not None]
    hash_of = dict(zip(claimed["row"].tolist(), claimed[["high", "low"]].tolist(), strict=True))
    for row, row_hash in hash_of.items():
        assert [r for r in hash_of if hash_of[r] == row_hash] == [
            r for r in hash_of if ids[r] == ids[row]
        ]


def test_survey_of_text_that_is_not_utf8_fails_the_row_and_not_the_table():
    raw = pa.array([b"a cat", b"\xff\xfe", b"a dog"], pa.binary())
    prompts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    found = survey(pa.table({"prompt": prompts}))
    assert found.invalid_rows.tolist() == [1]
    assert found.examples[0].reason == "invalid_prompt"
    assert "bytes" in found.examples[0].detail


def test_survey_examples_name_file_row_and_column_and_stop_at_three():
    table = pa.table({"prompt": ["a cat"] * 9, "steps": [20] + [0] * 8})
    found = survey(table, first_row=100, file="b.parquet", first_row_in_file=50)
    assert found.num_invalid_by_reason == {"invalid_steps": 8}
    assert [(e.file, e.row, e.column) for e in found.examples] == [
        ("b.parquet", 51, "steps"), ("b.parquet", 52, "steps"), ("b.parquet", 53, "steps"),
    ]  # fmt: skip


def test_survey_is_small_however_long_the_prompts():
    table = pa.table({"prompt": [f"{k} " + "x" * 1000 for k in range(500)]})
    found = survey(table)
    assert found.id_claims.nbytes + found.prompt_hashes.nbytes == 500 * (24 + 8)


def test_survey_hashes_are_blake2b_in_every_process():
    found = survey(pa.table({"prompt": ["a cat"], "id": ["x"]}))
    # `printf x | b2sum -l 128`
    assert found.id_claims[0].tolist() == (0, 0x442A44457137672B, 0x3218C1007DC8F76A)
