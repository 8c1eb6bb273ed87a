"""A sheet for each bucket shows its first samples, whatever the format of the dataset."""

import io
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from sdxl_core.contract.samples import staged_table
from sdxl_core.storage.sample_parts import SampleFormat, bucket_path, read_bucket_file
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


def test_dataset_of_latents_has_no_pictures_to_show(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    staging = stage(store, [plain_rows(3)])
    finish(store, staging, plan(staging), encode=lambda _, s: as_moments(s, [b"m"] * s.num_rows))
    assert list(first_samples(store)) == []
