"""Samples and rejections become rows of their tables, whatever a source holds."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.samples import (
    RawSample,
    Rejection,
    RejectReason,
    Sample,
    reject,
    rejected_schema,
    rejected_table,
    samples_schema,
    staged_schema,
    staged_table,
)

SAMPLE = Sample(
    id="a", row_index=3, captions=("a cat", "eine Katze"), image=b"jpeg", original_height=300,
    original_width=400, crop_top=0, crop_left=12, target_height=128, target_width=152, flip=False,
    source="s3://b/x.tar#a.jpg", content_sha256="00", upscale=0.5, phash=2**64 - 1,
    notes=("cmyk",), metadata='{"punsafe":0.1}',
)  # fmt: skip
RAW = RawSample(key="a", row_index=3, source="x.tar#a.jpg", image=None, captions=("a cat",))


def test_every_reject_reason_has_one_line_of_explanation() -> None:
    for reason in RejectReason:
        assert reason.explanation
        assert "\n" not in reason.explanation
        assert len(reason.explanation) < 90
    assert len({reason.explanation for reason in RejectReason}) == len(RejectReason)


def test_every_field_of_a_sample_is_a_column_of_the_staged_table() -> None:
    names = {field.name for field in dataclasses.fields(Sample)}
    assert names | {"source_slice"} == set(staged_schema().names)
    names = {field.name for field in dataclasses.fields(Rejection)}
    assert names | {"source_slice"} == set(rejected_schema().names)


def test_staged_table_gives_back_the_samples_it_was_made_of() -> None:
    scored = dataclasses.replace(SAMPLE, id="b", aesthetic=5.5, notes=(), flip=True)
    table = staged_table([SAMPLE, scored], source_slice=7)

    rows = table.to_pylist()
    assert [row.pop("source_slice") for row in rows] == [7, 7]
    for row in rows:
        row["captions"], row["notes"] = tuple(row["captions"]), tuple(row["notes"])
    assert [Sample(**row) for row in rows] == [SAMPLE, scored]


def test_tables_without_rows_have_all_columns() -> None:
    assert staged_table([], source_slice=0).schema == staged_schema()
    assert rejected_table([], source_slice=0).schema == rejected_schema()


def test_latents_and_text_take_the_places_that_the_schema_gives_them() -> None:
    plain = samples_schema()
    latents = samples_schema(latents=True, text=True)
    assert set(plain.names) - set(latents.names) == {"image"}
    assert set(latents.names) - set(plain.names) == {
        *("moments", "moments_dtype", "moments_shape"),
        *("text_states", "text_pooled", "text_dtype", "text_shape"),
    }
    shared = [name for name in plain.names if name != "image"]
    assert [name for name in latents.names if name in shared] == shared


def test_rejection_of_a_raw_sample_keeps_what_tells_the_row() -> None:
    rejection = reject(RAW, RejectReason.TOO_SMALL, "10 px", original_size=(10, 2**40))
    row = rejected_table([rejection], source_slice=2).to_pylist()[0]
    assert row == {
        "id": "a", "source": "x.tar#a.jpg", "reason": "too_small", "detail": "10 px",
        "original_height": 10, "original_width": 2**40, "captions": ["a cat"],
        "source_slice": 2, "row_index": 3,
    }  # fmt: skip
    assert reject(RAW, RejectReason.MISSING_IMAGE, "none").original_height is None


@given(
    texts=st.lists(st.text(st.characters(), max_size=20), min_size=1, max_size=4),
    detail=st.text(st.characters(), max_size=20),
)
def test_any_text_of_a_source_can_be_written(texts: list[str], detail: str) -> None:
    hostile = dataclasses.replace(
        SAMPLE, id=texts[0], captions=tuple(texts), notes=tuple(texts), metadata=detail
    )
    raw = dataclasses.replace(RAW, key=texts[-1], captions=tuple(texts))
    rejection = reject(raw, RejectReason.INTERNAL_ERROR, detail * 1000)
    for table in (
        staged_table([hostile], source_slice=0),
        rejected_table([rejection], source_slice=0),
    ):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        assert pq.read_table(pa.BufferReader(sink.getvalue())) == table
        assert len(table["captions"][0]) == len(texts)
