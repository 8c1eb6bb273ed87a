"""What is written for a bucket is what is read back, in both formats, and by webdataset itself."""

import hashlib
import io
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from sdxl_core.contract.errors import StoreError
from sdxl_core.contract.samples import samples_schema, staged_table
from sdxl_core.storage.sample_parts import (
    ROW_GROUP_BYTES,
    SampleFormat,
    bucket_of_path,
    bucket_path,
    index_path,
    read_bucket_file,
    read_first_samples,
    write_sample_part,
)
from sdxl_core.storage.source_plan import plan_sources
from sdxl_core.storage.sources import count_slice, read_slice
from sdxl_core.storage.stores import Store, open_store
from tests.sdxl_core.storage.staged_samples import make_sample

FORMATS = get_args(SampleFormat)


def make_table(num_rows: int, *, num_bytes: int | None = None) -> pa.Table:
    samples = [make_sample(0, 3 * row, num_bytes=num_bytes) for row in range(num_rows)]
    return staged_table(samples, source_slice=0).drop_columns(["phash"])


def with_column(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


@pytest.mark.parametrize("output_format", FORMATS)
def test_samples_read_back_as_they_were_written(store: Store, output_format: SampleFormat) -> None:
    table = make_table(70)
    hostile = ["../x", "a b/ü.jpg", "", "a.b.c", "A", "a", "CON", "a", "x" * 300, "a=n2"]
    table = with_column(table, "id", [*hostile, *table["id"].to_pylist()[10:]])
    table = with_column(table, "captions", [["\n \u2028 two\nlines", ""]] * 70)
    bucket = (16, 16)

    entries = write_sample_part(store, 4, [(bucket, table)], output_format=output_format)

    path = bucket_path(bucket, 4, output_format)
    assert bucket_of_path(path) == bucket
    again = read_bucket_file(store, path)
    assert again.schema == samples_schema()
    assert again.to_pylist() == table.to_pylist()
    assert read_bucket_file(store, path, ["flip", "id"]) == again.select(["flip", "id"])
    assert read_first_samples(store, path, num_samples=5).to_pylist() == table.to_pylist()[:5]
    assert read_first_samples(store, path, num_samples=99).num_rows == 70
    for entry in entries:
        data = store.read_bytes(entry.path)
        assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("output_format", FORMATS)
def test_moments_and_text_read_back_as_they_were_written(
    tmp_path: Path, output_format: SampleFormat
) -> None:
    store = open_store(tmp_path)
    plain = make_table(3)
    schema = samples_schema(latents=True, text=True)
    columns = {name: plain[name] for name in plain.column_names}
    for name in ("moments", "text_states", "text_pooled"):
        columns[name] = pa.array([name.encode(), b"", bytes(range(256))])
    columns["moments_dtype"] = columns["text_dtype"] = pa.array(["bfloat16"] * 3)
    columns["moments_shape"] = pa.array([[8, 2, 2]] * 3, pa.list_(pa.int32()))
    columns["text_shape"] = pa.array([[1, 77, 64]] * 3, pa.list_(pa.int32()))
    table = pa.table([columns[name] for name in schema.names], schema=schema)

    write_sample_part(store, 0, [((16, 16), table)], output_format=output_format)

    again = read_bucket_file(store, bucket_path((16, 16), 0, output_format))
    assert again.schema == schema
    assert again.to_pylist() == table.to_pylist()


@pytest.mark.parametrize("output_format", FORMATS)
def test_equal_samples_give_equal_bytes(tmp_path: Path, output_format: SampleFormat) -> None:
    entries = [
        write_sample_part(
            open_store(tmp_path / name), 0, [((16, 16), make_table(5))], output_format=output_format
        )
        for name in ("a", "b")
    ]
    assert entries[0] == entries[1]


def test_webdataset_loads_the_tars_as_pictures_with_captions(tmp_path: Path) -> None:
    table = make_table(5)
    write_sample_part(open_store(tmp_path), 0, [((16, 16), table)], output_format="webdataset")

    path = tmp_path / bucket_path((16, 16), 0, "webdataset")
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8"))

    assert [sample["json"]["id"] for sample in samples] == table["id"].to_pylist()
    assert len({sample["__key__"] for sample in samples}) == 5
    for sample, row in zip(samples, table.to_pylist(), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(row["image"])))
        np.testing.assert_array_equal(sample["jpg"], pixels)
        assert sample["txt"].split("\n") == [" ".join(c.split()) for c in row["captions"]]
        assert sample["json"]["crop_left"] == row["crop_left"]


def test_tars_are_a_source_of_samples_again(tmp_path: Path) -> None:
    table = make_table(5)
    write_sample_part(open_store(tmp_path), 0, [((16, 16), table)], output_format="webdataset")
    plan = plan_sources([str(tmp_path / bucket_path((16, 16), 0, "webdataset"))])

    assert [count_slice(plan.slice(n)).num_rows for n in range(plan.num_slices)] == [5]
    raw_samples = list(read_slice(plan.slice(0)))

    for raw, row in zip(raw_samples, table.to_pylist(), strict=True):
        assert raw.problem is None
        assert raw.image == row["image"]
        assert raw.captions == tuple(" ".join(caption.split()) for caption in row["captions"])
        assert raw.metadata["aesthetic"] == row["aesthetic"]


def test_index_of_tars_says_where_each_picture_is(tmp_path: Path) -> None:
    store, table = open_store(tmp_path), make_table(4)
    buckets = [((16, 16), table), ((16, 24), table)]

    write_sample_part(store, 7, buckets, output_format="webdataset")

    index = pq.read_table(tmp_path / index_path(7))
    assert index.drop_columns(["path"]).to_pylist() == 2 * table.drop_columns(["image"]).to_pylist()
    for place, sample_id in zip(index["path"].to_pylist(), index["id"].to_pylist(), strict=True):
        path, _, key = place.partition("#")
        for sample in webdataset.WebDataset(str(tmp_path / path), shardshuffle=False):
            if sample["__key__"].endswith(key):
                assert json.loads(sample["json"])["id"] == sample_id
                break
        else:
            pytest.fail(f"nothing at {place}")


def test_row_groups_are_small_enough_to_read_one_batch_at_a_time(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    small = make_table(200, num_bytes=100)
    large = make_table(20, num_bytes=1 << 20)

    write_sample_part(store, 0, [((16, 16), small), ((24, 16), large)])

    groups = pq.ParquetFile(tmp_path / bucket_path((16, 16), 0)).metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [64, 64, 64, 8]
    groups = pq.ParquetFile(tmp_path / bucket_path((24, 16), 0)).metadata
    for number in range(groups.num_row_groups):
        assert groups.row_group(number).total_byte_size <= ROW_GROUP_BYTES
    assert groups.num_row_groups <= 3


@pytest.mark.parametrize("output_format", FORMATS)
def test_damaged_file_is_named(tmp_path: Path, output_format: SampleFormat) -> None:
    store = open_store(tmp_path)
    path = bucket_path((16, 16), 0, output_format)
    write_sample_part(store, 0, [((16, 16), make_table(3))], output_format=output_format)
    store.write_bytes(path, store.read_bytes(path)[:700])

    for read in (read_bucket_file, lambda *a: read_first_samples(*a, num_samples=2)):
        with pytest.raises(StoreError, match="bucket=16x16/part-00000"):
            read(store, path)
    with pytest.raises(StoreError, match="part-00009"):
        read_bucket_file(store, bucket_path((16, 16), 9, output_format))
