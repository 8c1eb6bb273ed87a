import pyarrow as pa
import torch

from cluster.messages import (
    MESSAGE_SCHEMA,
    PartWork,
    from_message,
    message_part,
    start_message,
    to_message,
)
from sdxl_core.contract.errors import RowError
from sdxl_core.contract.reasons import Reason
from tests.cluster.rows import make_part, make_texts


def test_message_of_a_part_on_its_way_comes_back_equal() -> None:
    work = make_part(3, steps=4, strength=0.5, refiner=True)
    work.texts = [make_texts(1), make_texts(2)]
    first, second, third = work.rows
    first.texts = {"base": (0, 1), "refiner": (1, None)}
    first.latents = torch.randn(4, 8, 16, dtype=torch.float32)
    first.num_draws, first.num_slots, first.num_tokens_cut = 3, 4, 12
    first.seconds = {"encode": 0.25}
    second.error = RowError(Reason.TOKENIZER_FAILED, "column 'prompt': \u202e \0 odd")
    back = from_message(to_message(work))
    assert (back.part, back.fatal, back.table) == (7, "", work.table)
    assert [row.request for row in back.rows] == [row.request for row in work.rows]
    assert [row.input_row for row in back.rows] == [100, 101, 102]
    got = back.rows[0]
    assert got.texts == first.texts
    assert torch.equal(got.latents, first.latents)  # type: ignore[arg-type]
    assert (got.num_draws, got.num_slots, got.num_tokens_cut) == (3, 4, 12)
    assert got.seconds == first.seconds
    assert back.rows[1].error is not None
    assert (back.rows[1].error.reason, back.rows[1].error.detail) == (
        second.error.reason,
        second.error.detail,
    )
    assert third.latents is None
    assert back.rows[2].latents is None
    for got_text, text in zip(back.texts, work.texts, strict=True):
        assert torch.equal(got_text.context_TD, text.context_TD)
        assert got_text.context_TD.dtype == torch.bfloat16
        assert torch.equal(got_text.pooled_P, text.pooled_P)
        assert got_text.num_tokens_cut == text.num_tokens_cut


def test_message_keeps_nan_latents_and_every_bit() -> None:
    work = make_part(1)
    latents = torch.full((4, 8, 8), float("nan"))
    latents[0, 0, 0] = torch.finfo(torch.float32).tiny / 2  # a denormal number
    work.rows[0].latents = latents
    back = from_message(to_message(work)).rows[0].latents
    assert back is not None
    assert torch.equal(back.view(torch.int32), latents.view(torch.int32))


def test_message_is_one_row_of_one_schema_at_every_stage() -> None:
    for message in (start_message(3), to_message(make_part(5))):
        assert message.num_rows == 1
        assert message.schema == MESSAGE_SCHEMA
    assert message_part(start_message(3)) == 3


def test_message_of_a_stopped_part_carries_the_reason_and_nothing_else() -> None:
    work = PartWork(part=2, table=pa.table({}), rows=[], fatal="read, part 2: gone")
    back = from_message(to_message(work))
    assert (back.part, back.fatal, back.rows) == (2, "read, part 2: gone", [])
