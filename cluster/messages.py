"""What travels between the pools: one part of the prompt table, as one Arrow row.

A part is a message of four columns: its number, the raw rows (Arrow IPC), the state of each row
(JSON) and the tensors (safetensors: text states, later latents). One message is one Ray Data
block, so Ray never splits, merges or reorders rows inside a part. Nothing is pickled.
"""

import dataclasses
import json
from typing import Any, Literal

import pyarrow as pa
import safetensors.torch
from torch import Tensor

from sdxl_core.contract.errors import RowError
from sdxl_core.contract.request import Request
from sdxl_core.diffusion.conditioning import TextStates

StageName = Literal["base", "refiner"]

_FIELDS = (
    pa.field("part", pa.int64()),
    pa.field("table", pa.large_binary()),
    pa.field("state", pa.large_string()),
    pa.field("tensors", pa.large_binary()),
)
MESSAGE_SCHEMA = pa.schema(_FIELDS)


@dataclasses.dataclass(kw_only=True)
class RowWork:
    """One row on its way.

    Attributes:
        input_row: The row's place in the whole input, from 0.
        request: What to make.
        texts: For each network, the places of its positive and negative text in the part's list;
            a negative of None is zeros.
        num_tokens_cut: Tokens of its prompts that did not fit.
        latents: (4, H, W) float32 once the base has run.
        num_draws: Draws taken from the row's generator.
        num_slots: Slots of the lane in which the last network ran the row.
        seconds: Wall time by stage.
        error: Set when the row has failed; later stages pass it by.
    """

    input_row: int
    request: Request
    texts: dict[StageName, tuple[int, int | None]] = dataclasses.field(default_factory=dict)
    num_tokens_cut: int = 0
    latents: Tensor | None = None
    num_draws: int = 0
    num_slots: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    error: RowError | None = None


@dataclasses.dataclass(kw_only=True)
class PartWork:
    """One part on its way. ``fatal`` says why the job cannot go on; the part is not committed."""

    part: int
    table: pa.Table
    rows: list[RowWork]
    texts: list[TextStates] = dataclasses.field(default_factory=list)
    fatal: str = ""

    @property
    def pending(self) -> list[RowWork]:
        """Rows that have not failed."""
        return [row for row in self.rows if row.error is None]


def start_message(part: int) -> pa.Table:
    """The message that a part begins as: its number."""
    return pa.table(
        {"part": [part], "table": [b""], "state": ["{}"], "tensors": [b""]}, schema=MESSAGE_SCHEMA
    )


def to_message(work: PartWork) -> pa.Table:
    """Packs a part."""
    tensors: dict[str, Tensor] = {}
    for index, text in enumerate(work.texts):
        tensors[f"context.{index}"] = text.context_TD.contiguous()
        tensors[f"pooled.{index}"] = text.pooled_P.contiguous()
    for index, row in enumerate(work.rows):
        if row.latents is not None:
            tensors[f"latents.{index}"] = row.latents.contiguous()
    state = {
        "fatal": work.fatal,
        "rows": [_row_to_json(row) for row in work.rows],
        "num_tokens_cut": [text.num_tokens_cut for text in work.texts],
    }
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, work.table.schema) as writer:
        writer.write_table(work.table)
    values = {
        "part": [work.part],
        "table": [sink.getvalue().to_pybytes()],
        "state": [json.dumps(state)],
        "tensors": [safetensors.torch.save(tensors)],
    }
    return pa.table(values, schema=MESSAGE_SCHEMA)


def message_part(message: pa.Table) -> int:
    """The part's number, without unpacking the rest."""
    return int(message.column("part")[0].as_py())


def from_message(message: pa.Table) -> PartWork:
    """Unpacks what ``to_message`` packed."""
    (values,) = message.to_pylist()
    state = json.loads(values["state"])
    tensors = safetensors.torch.load(values["tensors"])
    texts = [
        TextStates(
            context_TD=tensors[f"context.{index}"],
            pooled_P=tensors[f"pooled.{index}"],
            num_tokens_cut=num_cut,
        )
        for index, num_cut in enumerate(state["num_tokens_cut"])
    ]
    rows = [_row_from_json(row) for row in state["rows"]]
    for index, row in enumerate(rows):
        row.latents = tensors.get(f"latents.{index}")
    with pa.ipc.open_stream(values["table"]) as reader:
        table = reader.read_all()
    return PartWork(part=values["part"], table=table, rows=rows, texts=texts, fatal=state["fatal"])


def _row_to_json(row: RowWork) -> dict[str, Any]:
    values = {
        field.name: getattr(row, field.name)
        for field in dataclasses.fields(row)
        if field.name not in ("request", "latents", "error")
    }
    error = None if row.error is None else [str(row.error.reason), row.error.detail]
    return values | {"request": vars(row.request), "error": error}


def _row_from_json(values: dict[str, Any]) -> RowWork:
    error = values.pop("error")
    texts = {stage: tuple(places) for stage, places in values.pop("texts").items()}
    request = Request(**values.pop("request"))
    return RowWork(
        **values, texts=texts, request=request, error=None if error is None else RowError(*error)
    )
