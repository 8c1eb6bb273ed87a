"""Units of a dataset hold every sample once, and what is read of them is what was written."""

from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_core.contract.errors import SchemaError, StoreError
from sdxl_core.contract.samples import staged_table
from sdxl_core.storage.parts import PartRecord, commit_part
from sdxl_core.storage.sample_parts import SampleFormat, bucket_path, write_sample_part
from sdxl_core.storage.sample_reading import iter_units, read_unit
from sdxl_core.storage.stores import Store, open_store
from tests.sdxl_core.storage.staged_samples import make_sample

FORMATS = get_args(SampleFormat)
BUCKETS = [(16, 16), (16, 24)]


def make_table(num_rows: int, *, num_bytes: int | None = None) -> pa.Table:
    samples = [make_sample(0, 3 * row, num_bytes=num_bytes) for row in range(num_rows)]
    return staged_table(samples, source_slice=0).drop_columns(["phash"])


def write_dataset(
    store: Store, tables: list[pa.Table], *, output_format: SampleFormat = "parquet"
) -> None:
    """One part for each table, which is in both buckets."""
    for part, table in enumerate(tables):
        buckets = [(bucket, table) for bucket in BUCKETS]
        files = write_sample_part(store, part, buckets, output_format=output_format)
        num_rows = len(BUCKETS) * table.num_rows
        record = PartRecord(
            part=part,
            num_rows=num_rows,
            num_by_status={"sample": num_rows},
            num_by_reason={},
            files=tuple(files),
        )
        commit_part(store, record)


@pytest.mark.parametrize("output_format", FORMATS)
def test_units_hold_every_sample_once_in_order(store: Store, output_format: SampleFormat) -> None:
    tables = [make_table(150), make_table(3)]
    write_dataset(store, tables, output_format=output_format)

    units = list(iter_units(store))

    per_file = {"parquet": 3 + 1, "webdataset": 1 + 1}[output_format]
    assert len(units) == len(BUCKETS) * per_file
    for part, table in enumerate(tables):
        for bucket in BUCKETS:
            path = bucket_path(bucket, part, output_format)
            mine = [unit for unit in units if unit.path == path]
            assert [unit.row_group for unit in mine] == list(range(len(mine)))
            assert {unit.bucket for unit in mine} == {bucket}
            read = [read_unit(store, unit.path, unit.row_group) for unit in mine]
            assert [one.num_rows for one in read] == [unit.num_rows for unit in mine]
            assert pa.concat_tables(read) == table


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize(
    "columns",
    [["id"], ["image"], ["image", "captions", "id"], ["flip", "crop_top", "notes"], ["id", "flip"]],
)
def test_columns_come_in_the_order_that_they_were_asked_in(
    tmp_path: Path, output_format: SampleFormat, columns: list[str]
) -> None:
    store, table = open_store(tmp_path), make_table(70)
    write_dataset(store, [table], output_format=output_format)

    for unit in iter_units(store):
        read = read_unit(store, unit.path, unit.row_group, columns)
        start = 64 * unit.row_group
        assert read == table.select(columns).slice(start, unit.num_rows)


def test_unit_takes_one_request_and_no_byte_of_other_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are counted at the real store; pictures are 2 MB in each row group."""
    store = open_store(tmp_path)
    write_dataset(store, [make_table(64, num_bytes=1 << 15)])
    requests: list[int] = []
    read_range = type(store).read_range

    def counted(self: Store, path: str, start: int, stop: int) -> bytes:
        requests.append(stop - start)
        return read_range(self, path, start, stop)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store), "read_range", counted)
    path = bucket_path(BUCKETS[0], 0)
    read_unit(store, path, 0)
    assert len(requests) == 1
    assert requests.pop() > 64 << 15
    read_unit(store, path, 0, ["id", "flip"])
    assert len(requests) == 2
    assert sum(requests) < 20_000
    requests.clear()
    read_unit(store, path, 0, ["flip", "crop_left"])
    assert len(requests) == 1


def test_what_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_dataset(store, [make_table(3)])
    path = bucket_path(BUCKETS[0], 0)

    with pytest.raises(SchemaError, match="has 1 row groups, but number 1"):
        read_unit(store, path, 1)
    with pytest.raises(SchemaError, match=r"part-00000.*no column \['moments'\].*'image'"):
        read_unit(store, path, 0, ["id", "moments"])
    with pytest.raises(StoreError, match="part-00009"):
        read_unit(store, bucket_path(BUCKETS[0], 9), 0)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_dataset(store, [make_table(64, num_bytes=1000)])
    path = bucket_path(BUCKETS[0], 0)
    group = pq.read_metadata(tmp_path / path).row_group(0)
    data = bytearray(store.read_bytes(path))
    for number in range(group.num_columns):  # the headers of all pages
        start = group.column(number).data_page_offset
        data[start : start + 12] = b"\xff" * 12
    store.write_bytes(path, bytes(data))

    with pytest.raises(StoreError, match="bucket=16x16/part-00000"):
        read_unit(store, path, 0)
