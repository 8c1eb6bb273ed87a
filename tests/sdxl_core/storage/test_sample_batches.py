"""Batches are of one size, hold every sample once, and their pixels are those of its picture."""

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from sdxl_core.contract.errors import SchemaError, StoreError
from sdxl_core.contract.samples import staged_table
from sdxl_core.storage.image_files import decode_image
from sdxl_core.storage.parts import PartRecord, commit_part
from sdxl_core.storage.sample_batches import iter_batches
from sdxl_core.storage.sample_parts import write_sample_part
from sdxl_core.storage.sample_reading import iter_units, read_unit
from sdxl_core.storage.stores import Store
from tests.sdxl_core.storage.staged_samples import BUCKETS, make_sample


@pytest.fixture
def dataset(store: Store) -> Store:
    """Two parts of three buckets; each bucket's first file has two row groups."""
    for part, num_rows in enumerate([3 * 70, 40]):
        samples = [make_sample(part, row) for row in range(num_rows)]
        by_bucket = [[s for s in samples if s.bucket == bucket] for bucket in BUCKETS]
        tables = [staged_table(some, source_slice=part) for some in by_bucket]
        buckets = zip(BUCKETS, [table.drop_columns(["phash"]) for table in tables], strict=True)
        record = PartRecord(
            part=part,
            num_rows=num_rows,
            num_by_status={"sample": num_rows},
            num_by_reason={},
            files=tuple(write_sample_part(store, part, buckets)),
        )
        commit_part(store, record)
    return store


@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_sample_is_in_one_batch_with_its_own_pixels(dataset: Store, num_threads: int) -> None:
    units = list(iter_units(dataset))
    pictures = {}
    for unit in units:
        table = read_unit(dataset, unit.path, unit.row_group, ["id", "image"])
        for sample_id, image in zip(*map(pa.ChunkedArray.to_pylist, table.columns), strict=True):
            pictures[sample_id] = (unit.bucket, image)

    batches = list(
        iter_batches(
            dataset, units, batch_size=16, columns=("id", "captions"), num_threads=num_threads
        )
    )

    assert set(pictures) == {name for batch in batches for name in batch.rows["id"].to_pylist()}
    assert sum(batch.rows.num_rows for batch in batches) == len(pictures)
    assert set(batches[0].rows.column_names) == {"id", "captions", "path"}
    for batch in batches:
        assert batch.pixels_BHWC.shape == (batch.rows.num_rows, *batch.bucket, 3)
        for number, sample_id in enumerate(batch.rows["id"].to_pylist()):
            bucket, image = pictures[sample_id]
            assert bucket == batch.bucket
            np.testing.assert_array_equal(batch.pixels_BHWC[number], decode_image(image))


def test_only_the_last_batch_of_a_bucket_is_small_and_it_can_be_left_out(dataset: Store) -> None:
    units = list(iter_units(dataset))
    sizes = [(b.bucket, b.rows.num_rows) for b in iter_batches(dataset, units, batch_size=16)]

    full = [size for size in sizes if size[1] == 16]
    small = Counter(bucket for bucket, num_rows in sizes if num_rows < 16)
    assert sizes[: len(full)] == full
    assert set(small) <= set(BUCKETS)
    assert max(small.values()) == 1
    whole = iter_batches(dataset, units, batch_size=16, with_rest=False)
    assert [(batch.bucket, batch.rows.num_rows) for batch in whole] == full


def test_no_more_is_read_than_is_asked_for(dataset: Store) -> None:
    units = list(iter_units(dataset))
    taken = []

    def counted() -> object:
        for unit in units * 50:
            taken.append(unit)
            yield unit

    batches = iter_batches(dataset, counted(), batch_size=4, num_threads=1)  # type: ignore[arg-type]
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert len(taken) < 30


def test_pictures_that_cannot_be_used_are_named(dataset: Store) -> None:
    units = list(iter_units(dataset))
    lying = [dataclasses.replace(unit, bucket=(8, 8)) for unit in units]
    with pytest.raises(StoreError, match=r"bucket=.*part-0000.*expected \(8, 8\)"):
        list(iter_batches(dataset, lying, batch_size=4))
    with pytest.raises(SchemaError, match="nothing"):
        list(iter_batches(dataset, units, batch_size=4, columns=["nothing"]))
