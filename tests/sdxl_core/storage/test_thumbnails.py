"""A sheet for each bucket shows its first samples, whatever the format of the dataset."""

import io
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sdxl_core.contract.samples import staged_table
from sdxl_core.storage.image_files import decode_image
from sdxl_core.storage.integrity import check_dataset
from sdxl_core.storage.previews import NUM_PREVIEWS, small_pictures
from sdxl_core.storage.sample_parts import (
    Bucket,
    SampleFormat,
    bucket_path,
    read_bucket_file,
)
from sdxl_core.storage.stores import Store, open_store
from sdxl_core.storage.thumbnails import first_samples, write_thumbnail_sheets
from tests.sdxl_core.storage.staged_samples import (
    BUCKETS,
    finish,
    make_sample,
    plain_rows,
    plan,
    stage,
    with_image,
)
from tests.sdxl_core.storage.test_finished_parts import as_moments

BLUE = 128  # of the pictures; no other part of a sheet has this colour


def num_pictures(store: Store, path: str) -> int:
    """How many cells of the sheet hold a picture: the pictures are of one colour each."""
    sheet = np.asarray(Image.open(io.BytesIO(store.read_bytes(path))).convert("RGB")).astype(int)
    is_picture = (abs(sheet[..., 2] - BLUE) < 12) & (sheet[..., 0] < 60)
    rows_H = is_picture[:, :].sum(axis=1)
    columns_of = [is_picture[y] for y in np.flatnonzero(rows_H > 12)]
    bands = np.flatnonzero(np.diff([0, *(rows_H > 12).astype(int)]) == 1)
    assert columns_of
    runs = [np.diff([0, *is_picture[y + 5].astype(int), 0]) for y in bands]
    return int(sum((run == 1).sum() for run in runs))


@pytest.mark.parametrize("output_format", get_args(SampleFormat))
def test_every_bucket_has_a_sheet_of_its_first_pictures(
    tmp_path: Path, output_format: SampleFormat
) -> None:
    store = open_store(tmp_path)
    staging = stage(store, [plain_rows(9), plain_rows(3, part=1)])
    layout = plan(staging, group_bytes=4000)
    finish(store, staging, layout, output_format=output_format)
    assert layout.num_groups > 1

    buckets = list(first_samples(store, num_samples=3))
    paths = write_thumbnail_sheets(store, buckets)

    assert paths == {bucket: f"thumbnails/{bucket[0]}x{bucket[1]}.jpg" for bucket in BUCKETS}
    for bucket, samples in buckets:
        assert samples.num_rows == 3
        assert num_pictures(store, paths[bucket]) == 3
    first = read_bucket_file(store, bucket_path((16, 16), 0, output_format)).to_pylist()[:3]
    assert buckets[0][1].to_pylist()[: len(first)] == first


def test_picture_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    samples = [make_sample(0, 0), with_image(make_sample(0, 3), b"broken"), make_sample(0, 6)]

    paths = write_thumbnail_sheets(store, [((16, 16), staged_table(samples, source_slice=0))])

    assert num_pictures(store, paths[16, 16]) == 2


@pytest.mark.parametrize("output_format", get_args(SampleFormat))
def test_dataset_of_latents_shows_small_pictures_of_kept_samples_while_it_is_staged(
    tmp_path: Path, output_format: SampleFormat
) -> None:
    store = open_store(tmp_path)
    staging = stage(store, [plain_rows(9), plain_rows(30, part=1)])
    layout = plan(staging, group_bytes=12_000)

    def encode(_bucket: Bucket, samples: pa.Table) -> pa.Table:
        is_bad = [row == 3 for row in samples["row_index"].to_pylist()]
        return as_moments(samples, [None if bad else b"m" for bad in is_bad])

    finish(store, staging, layout, encode=encode, output_format=output_format)
    assert layout.num_groups > 1

    buckets = dict(first_samples(store))
    paths = write_thumbnail_sheets(store, buckets.items())

    assert set(buckets) == set(BUCKETS)
    for bucket, samples in buckets.items():
        assert 3 not in samples["row_index"].to_pylist()
        sizes = zip(samples["target_height"], samples["target_width"], strict=True)
        assert {(height.as_py(), width.as_py()) for height, width in sizes} == {bucket}
        assert samples.num_rows == NUM_PREVIEWS
        shown = decode_image(samples["image"][0].as_py())
        assert shown.shape == (2 * bucket[0], 2 * bucket[1], 3)  # as large as a cell shows it
        assert store.exists(paths[bucket])
    assert not check_dataset(store).problems
    for file in staging.list():
        staging.delete(file.path)
    assert list(first_samples(store)) == []


def test_preview_of_a_picture_that_cannot_be_read_is_left_out() -> None:
    samples = [make_sample(0, 0), with_image(make_sample(0, 3), b"broken"), make_sample(0, 6)]
    small = small_pictures(staged_table(samples, source_slice=0))
    assert small["row_index"].to_pylist() == [0, 6]
