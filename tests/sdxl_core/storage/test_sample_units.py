"""The units of a dataset are all of its samples, and only a finished, whole dataset has any."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from sdxl_core.contract.errors import SchemaError, StoreError
from sdxl_core.storage.parts import (
    DatasetInfo,
    PartRecord,
    commit_part,
    delete_summary,
    record_path,
    write_run_files,
    write_summary,
)
from sdxl_core.storage.sample_parts import SampleFormat, bucket_path
from sdxl_core.storage.sample_reading import read_unit
from sdxl_core.storage.sample_units import list_sample_units
from sdxl_core.storage.stores import Store, open_store
from tests.sdxl_core.storage.staged_samples import (
    finish,
    make_rejection,
    make_sample,
    plain_rows,
    plan,
    stage,
)

FORMATS = get_args(SampleFormat)
NUM_SAMPLES = 460


def write_dataset(
    store: Store, *, output_format: SampleFormat = "parquet", num_bytes: int = 100
) -> list[PartRecord]:
    """A finished dataset of a few parts with three buckets, and two rejected rows."""
    rows = [
        [*plain_rows(230, num_bytes=num_bytes), make_rejection(0, 230)],
        [
            *([make_sample(1, row, num_bytes=num_bytes)] for row in range(230)),
            make_rejection(1, 230),
        ],
    ]
    staging = stage(store, rows, unit_bytes=4000)
    records = finish(store, staging, plan(staging, group_bytes=20_000), output_format=output_format)
    write_summary(store, {})
    return records


@pytest.mark.parametrize("output_format", FORMATS)
def test_units_hold_every_sample_once(store: Store, output_format: SampleFormat) -> None:
    records = write_dataset(store, output_format=output_format)
    assert len(records) > 1

    units = list_sample_units(store)

    assert len(units.file_bucket) == len(set(units.files)) == len(units.files)
    ids = []
    for file, index, num_rows in zip(units.file_U, units.index_U, units.rows_U, strict=True):
        path, bucket = units.files[file], units.file_bucket[file]
        table = read_unit(store, path, int(index), ["id", "target_height", "target_width"])
        rows = table.to_pylist()
        assert len(rows) == num_rows
        assert {(row["target_height"], row["target_width"]) for row in rows} == {bucket}
        ids += [row["id"] for row in rows]
    assert len(set(ids)) == len(ids) == NUM_SAMPLES


def test_files_have_as_many_units_as_row_groups(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    staging = stage(store, [plain_rows(600, num_bytes=10)])
    finish(store, staging, plan(staging))
    write_summary(store, {})
    units = list_sample_units(store)
    assert units.files == tuple(bucket_path(b, 0) for b in ((16, 16), (16, 24), (24, 16)))
    assert units.file_U.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert units.index_U.tolist() == [0, 1, 2, 3] * 3
    assert units.rows_U.tolist() == [64, 64, 64, 8] * 3


def test_digest_tells_content_and_not_place(tmp_path: Path) -> None:
    stores = [open_store(tmp_path / name) for name in ("one", "other", "third")]
    for store, num_bytes in zip(stores, (100, 100, 101), strict=True):
        write_dataset(store, num_bytes=num_bytes)
    one, other, third = (list_sample_units(store).digest for store in stores)
    assert one == other != third


def test_unfinished_dataset_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(SchemaError, match=f"{tmp_path}: found nothing .*expected the finished"):
        list_sample_units(store)
    write_run_files(store, "", DatasetInfo(name="images", version=1, num_parts=1))
    write_summary(store, {})
    with pytest.raises(SchemaError, match=r"found images version 1, expected .*samples version 1"):
        list_sample_units(store)
    write_dataset(store)
    delete_summary(store)
    with pytest.raises(SchemaError, match="samples version 1, not finished"):
        list_sample_units(store)


def test_part_without_its_record_is_an_error_that_names_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_dataset(store)
    store.delete(record_path(1))
    with pytest.raises(StoreError, match=record_path(1)):
        list_sample_units(store)


def test_rows_that_the_records_do_not_know_are_an_error(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    record = write_dataset(store)[0]
    num_samples = record.num_by_status["sample"]
    wrong = dataclasses.replace(
        record,
        num_rows=record.num_rows + 1,
        num_by_status={**record.num_by_status, "sample": num_samples + 1},
    )
    commit_part(store, wrong)
    found = f"hold {NUM_SAMPLES} samples, its commit records say {NUM_SAMPLES + 1}"
    with pytest.raises(SchemaError, match=found):
        list_sample_units(store)


def test_missing_file_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    records = write_dataset(store)
    path = records[-1].files[0].path
    store.delete(path)
    with pytest.raises(StoreError, match=path):
        list_sample_units(store)
