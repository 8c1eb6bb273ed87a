"""What a part writes, and that it comes back; with equal bytes however often it is written."""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.contract.errors import SchemaError, StoreError
from sdxl_core.storage.image_files import SUFFIXES, ImageFormat, encode_image
from sdxl_core.storage.parts import FileEntry, PartRecord, commit_part
from sdxl_core.storage.sinks import (
    OutputFormat,
    read_image,
    read_output_table,
    read_part_images,
    write_part_files,
)
from sdxl_core.storage.stores import Store, open_store

WITH_IMAGES: tuple[OutputFormat, ...] = ("files", "parquet", "webdataset")


def image(number: int, image_format: ImageFormat = "png") -> bytes:
    rgb_HWC = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return encode_image(rgb_HWC, image_format=image_format, parameters={"number": number})


def results(ids: Sequence[str | None], *, failed: Sequence[int] = ()) -> pa.Table:
    status = ["failed" if n in failed else "ok" for n in range(len(ids))]
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "prompt": [f"größe {n}" for n in range(len(ids))],
            "input_row": range(len(ids)),
            "status": status,
            "path": pa.nulls(len(ids), pa.string()),
            "sha256": pa.nulls(len(ids), pa.string()),
            "tags": [["a", "b"], []] * (len(ids) // 2) + [None] * (len(ids) % 2),
        }
    )


def write(
    store: Store,
    table: pa.Table,
    images: Sequence[bytes | None],
    output_format: OutputFormat,
    *,
    part: int = 3,
    image_format: ImageFormat = "png",
) -> list[FileEntry]:
    files = write_part_files(
        store, part, table, images, output_format=output_format, image_format=image_format
    )
    num_rows = table.num_rows
    record = PartRecord(
        part=part,
        num_rows=num_rows,
        num_by_status={"ok": num_rows},
        num_by_reason={},
        files=tuple(files),
    )
    commit_part(store, record)
    return files


@pytest.mark.parametrize("output_format", WITH_IMAGES)
@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_every_row_and_every_image_comes_back(
    tmp_path: Path, output_format: OutputFormat, image_format: ImageFormat
) -> None:
    store = open_store(tmp_path)
    ids = ["a", "B", "b", "../x", "ü" * 100, None]
    images = [image(n, image_format) for n in range(5)] + [None]

    files = write(store, results(ids, failed=[5]), images, output_format, image_format=image_format)

    (table,) = read_output_table(store)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ids
    assert [row["tags"] for row in rows] == [["a", "b"], []] * 3
    assert [read_image(store, row) for row in rows[:5]] == images[:5]
    assert read_part_images(store, table) == dict(enumerate(images[:5]))
    assert [row["sha256"] for row in rows[:5]] == [
        hashlib.sha256(data).hexdigest() for data in images[:5] if data
    ]
    assert rows[5]["path"] is None
    assert rows[5]["sha256"] is None
    with pytest.raises(SchemaError, match="has no image"):
        read_image(store, rows[5])
    found = {file.path: file.num_bytes for file in store.list() if "_parts" not in file.path}
    assert found == {entry.path: entry.bytes for entry in files}
    for entry in files:
        assert hashlib.sha256(store.read_bytes(entry.path)).hexdigest() == entry.sha256


def test_output_works_the_same_on_s3(store: Store) -> None:
    images = [image(0), None, image(2)]
    for part, output_format in enumerate(WITH_IMAGES):
        write(store, results(["x", "y", "z"], failed=[1]), images, output_format, part=part)

    tables = list(read_output_table(store))

    assert len(tables) == 3
    for table in tables:
        assert read_part_images(store, table) == {0: images[0], 2: images[2]}
        assert read_image(store, table.to_pylist()[2]) == images[2]


@pytest.mark.parametrize("output_format", [*WITH_IMAGES, "dry"])
def test_equal_results_give_equal_bytes(tmp_path: Path, output_format: OutputFormat) -> None:
    stores = [open_store(tmp_path / name) for name in ("one", "two")]
    for store in stores:
        write(store, results(["a", "b"]), [image(0), image(1)], output_format)

    one, two = ({f.path: s.read_bytes(f.path) for f in s.list()} for s in stores)

    assert one == two


def test_files_lie_where_the_table_says(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write(store, results(["cat", "Dog"]), [image(0), image(1)], "files")

    assert (tmp_path / "images" / "part-00003" / "cat.png").read_bytes() == image(0)
    table = pq.read_table(tmp_path / "table" / "part-00003.parquet")
    assert table.column("path").to_pylist() == [
        "images/part-00003/cat.png",
        "images/part-00003/=44og.png",
    ]
    assert table.column_names == results(["x"]).column_names


def test_columns_are_added_where_the_table_lacks_them(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write(store, results(["a"]).drop_columns(["path", "sha256"]), [image(0)], "parquet")

    table = pq.read_table(tmp_path / "table" / "part-00003.parquet")

    assert table.column_names[-3:] == ["image", "path", "sha256"]
    assert table.column("image").to_pylist() == [image(0)]


def test_dry_output_is_the_table_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    files = write(store, results(["a", "b"]), [image(0), None], "dry")

    assert [entry.path for entry in files] == ["table/part-00003.parquet"]
    (table,) = read_output_table(store)
    assert table.column("path").to_pylist() == [None, None]
    assert table.column("sha256").to_pylist() == [None, None]


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_webdataset_library_reads_the_shards(tmp_path: Path, image_format: ImageFormat) -> None:
    store = open_store(tmp_path)
    ids = ["a.b", "c", "long " * 60]
    images = [image(n, image_format) for n in range(3)]
    write(store, results(ids), images, "webdataset", image_format=image_format)
    path = tmp_path / "shards" / "part-00003.tar"

    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))

    suffix = SUFFIXES[image_format][1:]
    assert [sample[suffix] for sample in samples] == images
    assert [sample["txt"].decode() for sample in samples] == ["größe 0", "größe 1", "größe 2"]
    assert [json.loads(sample["json"])["id"] for sample in samples] == ids
    with tarfile.open(path) as tar:
        assert {(member.mtime, member.isfile()) for member in tar} == {(0, True)}


def test_parquet_output_keeps_single_images_cheap_to_reach(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    images = [bytes([n]) * (9 << 20) for n in range(8)]
    write(store, results([str(n) for n in range(8)]), images, "parquet")

    metadata = pq.read_metadata(tmp_path / "table" / "part-00003.parquet")

    assert metadata.num_row_groups >= 2
    (table,) = read_output_table(store, ["id", "path"])
    assert table.column_names == ["id", "path"]
    assert read_image(store, table.to_pylist()[7]) == images[7]


def test_two_images_of_one_id_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    for output_format in ("files", "webdataset"):
        with pytest.raises(SchemaError, match="two images have the id 'a'"):
            write(store, results(["a", "b", "a"]), [image(n) for n in range(3)], output_format)
    # A duplicate that failed has no image, and is fine.
    write(store, results(["a", "b", "a"], failed=[2]), [image(0), image(1), None], "files")


def test_images_that_do_not_match_the_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="1 images for 2 rows"):
        write(open_store(tmp_path), results(["a", "b"]), [image(0)], "files")


@pytest.mark.parametrize("output_format", WITH_IMAGES)
def test_damaged_output_is_an_error_that_names_the_file(
    tmp_path: Path, output_format: OutputFormat
) -> None:
    store = open_store(tmp_path)
    write(store, results(["a"]), [image(0)], output_format)
    (table,) = read_output_table(store)
    row = table.to_pylist()[0]
    container = row["path"].partition("#")[0]
    store.write_bytes(container, b"not what it was")

    if output_format != "files":  # of a plain file, its hash tells
        with pytest.raises(StoreError, match="fsck") as caught:
            read_image(store, row)
        assert container in str(caught.value)
    store.write_bytes("table/part-00003.parquet", b"not a table")
    with pytest.raises(StoreError, match="table/part-00003"):
        list(read_output_table(store))


def test_row_that_points_out_of_the_output_is_refused(tmp_path: Path) -> None:
    for path in ("../secret.png", "/etc/passwd", "../x.tar#y.png"):
        with pytest.raises(StoreError, match="not a path below"):
            read_image(open_store(tmp_path), {"id": "a", "path": path})


@settings(max_examples=15)
@given(st.sets(st.integers(0, 12)), st.integers(0, 3))
def test_output_table_gives_committed_parts_in_order(
    tmp_path_factory: pytest.TempPathFactory, parts: set[int], num_uncommitted: int
) -> None:
    store = open_store(tmp_path_factory.mktemp("out"))
    for part in parts:
        write(store, results([f"id-{part}"]), [None], "dry", part=part)
    for part in range(20, 20 + num_uncommitted):
        buffer = io.BytesIO()
        pq.write_table(results(["stray"]), buffer)
        store.write_bytes(f"table/part-{part:05d}.parquet", buffer.getvalue())

    ids = [row["id"] for table in read_output_table(store) for row in table.to_pylist()]

    assert ids == [f"id-{part}" for part in sorted(parts)]
