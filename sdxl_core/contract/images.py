"""The images table: one row for every row of the prompt table, made or failed.

Columns, in this order: the prompt columns as they were resolved, what became of the row
(``RESULT_FIELDS``), the input's other columns untouched, and with ``--format parquet`` the encoded
image. Such a table is a valid prompt table again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from sdxl_core.contract.errors import RowError, SchemaError
from sdxl_core.contract.prompt_fields import PROMPT_COLUMNS, PROMPT_FIELDS
from sdxl_core.contract.prompts import ALIASES
from sdxl_core.contract.request import Request

SCHEMA_NAME: Final = "images"
SCHEMA_VERSION: Final = 1
STAGES: Final = ("encode", "denoise", "refine", "decode", "write")
IMAGE_COLUMN: Final = "image"
MAX_DETAIL_CHARACTERS: Final = 2000

_ARROW_TYPES: Final = {
    "id": pa.string(),
    "text": pa.string(),
    "sampler": pa.string(),
    "integer": pa.int32(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}

# `input_row` counts from 0 over the whole input. It is there in every row, also where the id is
# not: rows are told apart by it.
RESULT_FIELDS: Final = (
    pa.field("input_row", pa.int64(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("path", pa.string()),
    pa.field("sha256", pa.string()),
    pa.field("model_digest", pa.string()),
    pa.field("refiner_digest", pa.string()),
    pa.field("numerics", pa.string()),
    pa.field("num_slots", pa.int32()),
    pa.field("num_tokens_cut", pa.int32()),
    *(pa.field(f"seconds_{stage}", pa.float64()) for stage in STAGES),
)
OUTPUT_COLUMNS: Final = (*(column.name for column in RESULT_FIELDS), IMAGE_COLUMN)


@dataclass(frozen=True, kw_only=True)
class Made:
    """How one image was made; all of it goes into its row.

    Args:
        model_digest: digest of the base model's weights.
        numerics: name of the numerics profile.
        refiner_digest: digest of the refiner's weights, None if it did not take part.
        path: the file, relative to the output directory; None if the bytes are in the row.
        sha256: of the encoded image, in hex.
        image: the encoded image, for ``--format parquet``.
        num_slots: rows per batch that the plan set for this shape.
        num_tokens_cut: tokens of the row's prompts that did not fit into 77.
        seconds: by stage (``STAGES``), as far as known.
    """

    model_digest: str
    numerics: str
    refiner_digest: str | None = None
    path: str | None = None
    sha256: str | None = None
    image: bytes | None = None
    num_slots: int | None = None
    num_tokens_cut: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def images_schema(passthrough: pa.Schema, *, with_image: bool = False) -> pa.Schema:
    """Schema of the images table, given ``passthrough_schema`` of the input."""
    columns = [pa.field(f.name, _ARROW_TYPES[f.kind]) for f in PROMPT_FIELDS if f.name != "seed"]
    columns.insert(PROMPT_COLUMNS.index("seed"), pa.field("seed", pa.int64()))
    columns += [*RESULT_FIELDS, *passthrough]
    if with_image:
        columns.append(pa.field(IMAGE_COLUMN, pa.binary()))
    return pa.schema(columns)


def passthrough_schema(table_schema: pa.Schema) -> pa.Schema:
    """The columns of an input table that go to the output untouched.

    Not among them: the prompt columns and their aliases, the results of an earlier run (they get
    new values; ``replaced_columns`` lists them), and names that begin with ``_``, which are ours.
    """
    taken = {*PROMPT_COLUMNS, *ALIASES, *OUTPUT_COLUMNS}
    return pa.schema(
        [column for column in table_schema if column.name not in taken and column.name[:1] != "_"]
    )


def replaced_columns(names: Sequence[str]) -> list[str]:
    """The input's columns that the output has with other values; a run tells them beforehand."""
    return [name for name in names if name in OUTPUT_COLUMNS]


def made_row(request: Request, made: Made, *, input_row: int) -> dict[str, Any]:
    """The row of an image that exists."""
    return _row(vars(request), made, input_row=input_row) | {"status": "ok"}


def failed_row(
    columns: Request | Mapping[str, Any],
    error: RowError,
    *,
    input_row: int,
    made: Made | None = None,
) -> dict[str, Any]:
    """The row of an image that could not be made.

    Args:
        columns: the request; or, if it came to none, what ``resolve_partly`` gives.
        error: why.
        input_row: the row's place in the whole input, from 0.
        made: what is known of the attempt.
    """
    values = vars(columns) if isinstance(columns, Request) else columns
    detail = error.detail[:MAX_DETAIL_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    failure = {"status": "failed", "reason": str(error.reason), "detail": detail}
    nowhere = {"path": None, "sha256": None, IMAGE_COLUMN: None}
    return _row(values, made, input_row=input_row) | nowhere | failure


def results_table(
    rows: Sequence[Mapping[str, Any]], part: pa.Table, *, first_row: int, with_image: bool = False
) -> pa.Table:
    """The images table of one part: its rows in the order of the input, each exactly once.

    Args:
        rows: from ``made_row`` and ``failed_row``, in any order, one for each row of ``part``.
        part: the part of the prompt table.
        first_row: place of the part's first row in the whole input, from 0.
        with_image: whether the encoded images are a column.

    Raises:
        SchemaError: a row of the part is missing or there twice.
    """
    ordered = sorted(rows, key=lambda row: int(row["input_row"]))
    found = [row["input_row"] for row in ordered]
    expected = range(first_row, first_row + part.num_rows)
    if found != list(expected):
        missing = sorted(set(expected) - set(found))[:5]
        raise SchemaError(
            f"results of rows {expected.start} to {expected.stop - 1}: found {len(found)} rows, "
            f"expected {part.num_rows}, each once; missing among others: {missing}"
        )
    passthrough = passthrough_schema(part.schema)
    schema = images_schema(passthrough, with_image=with_image)
    columns: dict[str, Any] = {}
    for column in schema:
        if column.name in passthrough.names:
            columns[column.name] = part.column(column.name)
        else:
            columns[column.name] = pa.array([row[column.name] for row in ordered], column.type)
    return pa.table(columns, schema=schema)


def _row(values: Mapping[str, Any], made: Made | None, *, input_row: int) -> dict[str, Any]:
    row: dict[str, Any] = {name: values[name] for name in PROMPT_COLUMNS}
    row |= dict.fromkeys(OUTPUT_COLUMNS)
    row["input_row"] = input_row
    if made is not None:
        row |= {name: value for name, value in vars(made).items() if name != "seconds"}
        row |= {f"seconds_{stage}": made.seconds.get(stage) for stage in STAGES}
    return row
