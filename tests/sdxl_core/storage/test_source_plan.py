"""Finding sources and cutting them into slices."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.source_plan import plan_sources
from sdxl_core.storage.sources import count_slice, read_slice
from sdxl_core.storage.stores import open_store
from tests.sdxl_core.storage.source_files import reasons, tar_bytes, written

SHARD = tar_bytes([("a.jpg", b"A"), ("a.txt", b"t"), ("b.jpg", b"B")])


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(8, 12):
        written(tmp_path / "shards" / f"{number:05d}.tar", SHARD)
        written(tmp_path / "shards" / f"{number:05d}_stats.json", b"{}")
    return tmp_path / "shards"


@pytest.mark.parametrize(
    ("pattern", "num_slices"),
    [("", 4), ("/*.tar", 4), ("/{00009..00011}.tar", 3), ("/00008.tar", 1)],
)
def test_archives_are_found_by_folder_pattern_range_and_name(
    shards: Path, pattern: str, num_slices: int
) -> None:
    plan = plan_sources([f"{shards}{pattern}"])

    assert plan.num_slices == num_slices
    assert plan.num_rows is None
    assert plan.slice(num_slices - 1).url.startswith(str(shards))
    for index in range(num_slices):
        rows = list(read_slice(plan.slice(index)))
        assert len(rows) == count_slice(plan.slice(index)).num_rows == 2
        assert reasons(rows) == {"ok": 1, "missing_caption": 1}


@pytest.mark.parametrize("name", ["photos [2020]", "a*b", "x{1..2}", "y@2"])
def test_folder_that_is_called_like_a_pattern_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    written(tmp_path / "pictures" / name / "a.jpg", b"A")
    pq.write_table(pa.table({"image": [b"A"], "caption": ["c"]}), tmp_path / "t.parquet")
    (tmp_path / "tables" / name).mkdir(parents=True)
    (tmp_path / "t.parquet").rename(tmp_path / "tables" / name / "t.parquet")

    for kind in ("pictures", "tables"):
        assert plan_sources([f"{tmp_path}/{kind}/{name}"]).num_rows == 1


def test_several_sources_of_several_kinds_keep_their_order_and_weights(
    shards: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"image": [b"A"] * 5, "caption": ["c"] * 5}), tmp_path / "t.parquet")
    written(tmp_path / "folder" / "a.jpg", b"A")

    plan = plan_sources([f"{shards}@2.5", f"{tmp_path}/t.parquet", f"{tmp_path}/folder@.5"])

    assert [source.weight for source in plan.sources] == [2.5, 1.0, 0.5]
    assert [source.kind for source in plan.sources] == ["webdataset", "table", "folder"]
    assert [source.num_rows for source in plan.sources] == [None, 5, 1]
    pieces = [plan.slice(index) for index in range(plan.num_slices)]
    assert [piece.source_index for piece in pieces] == [0, 0, 0, 0, 1, 2]
    assert [piece.index for piece in pieces] == list(range(6))
    with pytest.raises(IndexError):
        plan.slice(6)


def test_name_with_an_at_sign_that_exists_is_no_weight(tmp_path: Path) -> None:
    written(tmp_path / "data@2" / "a.jpg", b"A")

    assert plan_sources([f"{tmp_path}/data@2"]).sources[0].weight == 1.0


def test_plan_and_slices_travel_to_workers_and_stay_small(tmp_path: Path) -> None:
    size = 100_000
    table = pa.table({"image": pa.array([b"A"] * size), "caption": pa.array(["c"] * size)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=100)

    plan = plan_sources([str(tmp_path)], rows_per_slice=1000)
    copy = pickle.loads(pickle.dumps(plan))

    assert copy.slice(57) == plan.slice(57)
    assert copy.digest == plan.digest
    assert len(pickle.dumps(plan)) < 20_000
    assert len(pickle.dumps(plan.slice(57))) < 2_000


def test_digest_tells_another_input_from_the_same_one(shards: Path) -> None:
    before = plan_sources([str(shards)]).digest
    assert plan_sources([str(shards)]).digest == before
    assert plan_sources([f"{shards}@2"]).digest != before
    written(shards / "00009.tar", SHARD + bytes(512))
    assert plan_sources([str(shards)]).digest != before


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "found none"),
        ({"x.pdf": b""}, "found none"),
        ({"a.tar.gz": b""}, "unpack them"),
        ({"a.tar": SHARD, "b.jpg": b""}, "side by side"),
        ({"t.csv": b"file_name,caption\n"}, "no rows"),
    ],
)
def test_folder_without_a_usable_source_is_refused_with_what_was_found(
    tmp_path: Path, files: dict[str, bytes], expected: str
) -> None:
    for name, data in files.items():
        written(tmp_path / name, data)

    with pytest.raises(ConfigError, match=expected):
        plan_sources([str(tmp_path)])


def test_file_that_two_sources_name_is_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"00009\.tar: two sources"):
        plan_sources([f"{shards}/*.tar", f"{shards}/00009.tar"])


def test_weight_of_zero_is_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        plan_sources([f"{shards}/*.tar@0"])


def test_every_row_group_is_in_one_slice_whatever_the_limits(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sizes = [int(rng.integers(1, 9)) for _ in range(12)]
    with pq.ParquetWriter(
        tmp_path / "t.parquet", pa.schema([("image", pa.binary()), ("text", pa.string())])
    ) as writer:
        for size in sizes:
            writer.write_table(pa.table({"image": [b"A"] * size, "text": ["c"] * size}))
    for most in (1, 5, 10, 1000):
        plan = plan_sources([str(tmp_path)], rows_per_slice=most)
        pieces = [plan.slice(index) for index in range(plan.num_slices)]
        assert sum(piece.num_row_groups for piece in pieces) == len(sizes)
        assert sum(piece.num_rows or 0 for piece in pieces) == sum(sizes) == plan.num_rows
        for piece in pieces:
            assert (piece.num_rows or 0) <= max(most, 9)
            assert len(list(read_slice(piece))) == piece.num_rows == count_slice(piece).num_rows


@pytest.mark.s3
def test_archives_on_s3_are_found_and_read(moto_url: str) -> None:
    store = open_store(moto_url)
    for number in range(3):
        store.write_bytes(f"in/{number}.tar", SHARD)

    for url in (f"{moto_url}/in", f"{moto_url}/in/*.tar", f"{moto_url}/in/{{0..2}}.tar"):
        plan = plan_sources([url])
        assert plan.num_slices == 3
        piece = plan.slice(2)
        assert piece.url == f"{moto_url}/in/2.tar"
        assert len(list(read_slice(piece))) == count_slice(piece).num_rows == 2
