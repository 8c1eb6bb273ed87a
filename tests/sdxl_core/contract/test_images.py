"""Every input row is in the images table once, and the images table is a prompt table again."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from sdxl_core.contract.errors import RowError, SchemaError
from sdxl_core.contract.images import (
    OUTPUT_COLUMNS,
    Made,
    failed_row,
    images_schema,
    made_row,
    passthrough_schema,
    replaced_columns,
    results_table,
)
from sdxl_core.contract.part_requests import resolve_part
from sdxl_core.contract.prompt_fields import PROMPT_COLUMNS
from sdxl_core.contract.prompts import PromptDefaults, Request, check_columns
from sdxl_core.contract.reasons import Reason
from tests.sdxl_core.contract.prompt_tables import prompt_tables

DEFAULTS = PromptDefaults(steps=7, negative_prompt="blurry", original_height=64, original_width=64)
MADE = Made(
    model_digest="m", numerics="exact", path="images/a.png", sha256="00", image=b"png",
    num_slots=4, num_tokens_cut=0, seconds={"denoise": 1.5},
)  # fmt: skip


def generate(table, *, first_row=0, defaults=DEFAULTS):
    """What a run does to a part, without making the images."""
    part = resolve_part(table, first_row=first_row, defaults=defaults, run_seed=1)
    rows = [made_row(request, MADE, input_row=row) for row, request in part.requests]
    return part, results_table([*rows, *part.failed], table, first_row=first_row, with_image=True)


@settings(max_examples=60, deadline=None)
@given(prompt_tables())
def test_images_table_holds_every_row_once_and_reads_back_as_the_same_requests(
    tmp_path_factory, table
):
    part, images = generate(table, first_row=5)
    assert images.column("input_row").to_pylist() == list(range(5, 5 + table.num_rows))
    assert images.column("status").to_pylist().count("ok") == len(part.requests)

    path = tmp_path_factory.mktemp("images") / "part.parquet"
    pq.write_table(images, path)
    again_table = pq.read_table(path)
    check_columns(again_table.column_names, file="part.parquet")
    again, images_again = generate(again_table, first_row=5, defaults=PromptDefaults(steps=99))
    assert again.requests == part.requests
    assert [row["reason"] for row in again.failed] == [row["reason"] for row in part.failed]
    assert images_again.schema == images.schema


def test_columns_that_nobody_knows_pass_through_untouched():
    table = pa.table({
        "prompt": ["a", "b"], "tags": [["x", "y"], None], "score": pa.array([0.5, 2], pa.float16()),
        "step": [3, 0], "_mine": [1, 2], "path": ["old.png", None],
    })  # fmt: skip
    _, images = generate(table)
    assert images.select(["tags", "score"]).equals(table.select(["tags", "score"]))
    assert not {"step", "_mine"} & set(images.column_names)
    assert images.column("path").to_pylist() == ["images/a.png", None]
    assert replaced_columns(table.column_names) == ["path"]


def test_images_schema_has_the_columns_of_the_contract_in_order():
    names = images_schema(passthrough_schema(pa.schema([("extra", pa.int8())]))).names
    assert names == [*PROMPT_COLUMNS, *OUTPUT_COLUMNS[:-1], "extra"]
    seconds = {f"seconds_{stage}" for stage in ("encode", "denoise", "refine", "decode", "write")}
    assert seconds | {"status", "reason", "detail", "path", "sha256", "numerics"} <= set(names)


def test_row_that_failed_after_it_was_resolved_keeps_its_request_and_names_no_file():
    request = Request(prompt="a cat", seed=2**63 - 1)
    error = RowError(Reason.OUT_OF_MEMORY, "8 GB wanted \ud800" + "x" * 5000)
    row = failed_row(request, error, input_row=0, made=MADE)
    images = results_table([row], pa.table({"prompt": ["a cat"]}), first_row=0).to_pylist()[0]
    assert (images["status"], images["reason"], images["seed"]) == (
        "failed",
        "out_of_memory",
        2**63 - 1,
    )
    assert (images["path"], images["sha256"], images["numerics"]) == (None, None, "exact")
    assert 2000 <= len(images["detail"]) < 2010


@pytest.mark.parametrize("rows", [[0], [0, 0], [0, 2], [0, 1, 1], []])
def test_results_that_are_not_every_row_once_are_refused(rows):
    results = [made_row(Request(prompt="a"), MADE, input_row=row) for row in rows]
    with pytest.raises(SchemaError, match="each once"):
        results_table(results, pa.table({"prompt": ["a", "b"]}), first_row=0)
