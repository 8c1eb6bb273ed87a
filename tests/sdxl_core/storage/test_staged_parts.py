"""Staged parts: written as the rows come, read back in the order of the source."""

from pathlib import Path

import numpy as np
import pytest

from sdxl_core.contract.errors import SchemaError, StoreError
from sdxl_core.contract.samples import SAMPLE_IMAGE_COLUMN, staged_schema
from sdxl_core.storage.parts import commit_part
from sdxl_core.storage.staged_parts import (
    read_parquet,
    read_staged_columns,
    read_staged_index,
    read_staged_rows,
    staged_rejected_path,
    staging_store,
    unit_path,
    write_staged,
)
from sdxl_core.storage.stores import Store, open_store
from tests.sdxl_core.storage.staged_samples import (
    make_rejection,
    make_sample,
    plain_rows,
    row_hash,
    stage,
)


def test_staged_part_has_every_row_and_its_record_says_so(store: Store) -> None:
    results = [
        [make_sample(0, 0, num_bytes=1000)],
        make_rejection(0, 1),
        [make_sample(0, 2, crop=crop, num_bytes=1500) for crop in range(3)],
        [make_sample(0, 3, num_bytes=0)],
    ]
    staging = staging_store(store)
    record = write_staged(staging, 0, results, unit_bytes=2000)

    assert record.num_by_status == {"sample": 5, "rejected": 1}
    assert record.num_by_reason == {"corrupt_image": 1}
    assert record.extra["num_source_rows"] == 4
    assert len(record.extra["unit_bytes"]) == 2
    units = [read_parquet(staging, unit_path(0, unit)) for unit in range(2)]
    assert [unit["row_index"].to_pylist() for unit in units] == [[0, 2, 2, 2], [3]]
    assert units[0].schema == staged_schema()
    assert read_parquet(staging, staged_rejected_path(0))["row_index"].to_pylist() == [1]
    commit_part(staging, record)
    assert read_staged_index(staging).num_bytes_U.tolist() == [
        4 * 2 + 5500,
        2,
    ]  # two bytes begin a JPEG


def test_writer_makes_a_unit_while_the_one_before_is_written_and_no_more(tmp_path: Path) -> None:
    staging = staging_store(open_store(tmp_path))
    num_files_seen = []

    def results():
        for row in range(6):
            num_files_seen.append(len(staging.list("samples")))
            yield [make_sample(0, row, num_bytes=998)]

    write_staged(staging, 0, results(), unit_bytes=2000)
    for row, num_files in enumerate(num_files_seen):
        assert row // 2 - 1 <= num_files <= row // 2


@pytest.mark.parametrize(
    "results",
    [
        [[]],
        [[make_sample(0, 1, num_bytes=1)], make_rejection(0, 1)],
        [make_rejection(0, 1), make_rejection(0, 1)],
        [[make_sample(0, 1, num_bytes=1), make_sample(0, 2, num_bytes=1)]],
        [make_rejection(0, 1), []],
    ],
)
def test_source_row_without_a_result_of_its_own_is_refused(tmp_path: Path, results) -> None:
    with pytest.raises(SchemaError, match="expected one source row"):
        write_staged(open_store(tmp_path), 0, results)


def test_rows_to_look_for_duplicates_are_each_row_once_in_the_order_of_the_source(
    tmp_path: Path,
) -> None:
    crops = [[make_sample(1, row, crop=c, num_bytes=9) for c in range(2)] for row in (2, 0)]
    staging = stage(
        open_store(tmp_path),
        [plain_rows(2, num_bytes=9), [*crops, make_rejection(1, 1)], []],
        unit_bytes=1,
    )
    index = read_staged_index(staging)

    rows = read_staged_rows(staging, index)

    assert index.num_parts == 3
    assert list(zip(index.part_U, index.unit_U, strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    expected = [(0, 0), (0, 1), (1, 0), (1, 2)]
    assert list(zip(rows.source_slice_R, rows.row_index_R, strict=True)) == expected
    assert rows.ids_R.to_pylist() == [
        "part0/00000", "part0/00001", "part1/00000#0", "part1/00002#0",
    ]  # fmt: skip
    assert rows.phash_R.tolist() == [row_hash(part, row) for part, row in expected]
    assert rows.phash_R.dtype == np.uint64
    hashes = [make_sample(part, row, num_bytes=0).content_sha256 for part, row in expected]
    assert [digest.decode() for digest in rows.content_sha256_R.tolist()] == hashes
    assert SAMPLE_IMAGE_COLUMN not in read_staged_columns(staging, index).column_names


def test_empty_source_has_an_index_and_columns_without_rows(tmp_path: Path) -> None:
    staging = staging_store(open_store(tmp_path))
    index = read_staged_index(staging)
    assert index.num_parts == 0
    assert read_staged_rows(staging, index).phash_R.shape == (0,)
    assert read_staged_columns(staging, index, ["id", "upscale"]).num_rows == 0


def test_damaged_unit_is_named(tmp_path: Path) -> None:
    staging = stage(open_store(tmp_path), [plain_rows(1, num_bytes=5)])
    staging.write_bytes(unit_path(0, 0), b"no parquet")
    with pytest.raises(StoreError, match="part-00000-00000"):
        read_staged_columns(staging, read_staged_index(staging))
