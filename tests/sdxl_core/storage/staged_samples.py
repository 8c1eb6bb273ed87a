"""Staged parts to test with: rows with small pictures, and a whole dataset made of them."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from sdxl_core.contract.samples import (
    SAMPLES_SCHEMA_NAME,
    SAMPLES_SCHEMA_VERSION,
    Rejection,
    RejectReason,
    Sample,
)
from sdxl_core.storage.finished_parts import EncodeBucket, finish_group
from sdxl_core.storage.image_files import encode_image
from sdxl_core.storage.parts import DatasetInfo, PartRecord, commit_part, write_run_files
from sdxl_core.storage.sample_parts import SampleFormat
from sdxl_core.storage.staged_parts import (
    read_staged_index,
    read_staged_rows,
    staging_store,
    write_staged,
)
from sdxl_core.storage.staging_layout import (
    Layout,
    duplicates_table,
    plan_layout,
    write_layout,
)
from sdxl_core.storage.stores import Store

Result = list[Sample] | Rejection
BUCKETS = [(16, 16), (16, 24), (24, 16)]


def make_sample(
    part: int, row: int, *, crop: int | None = None, num_bytes: int | None = None
) -> Sample:
    """A sample of one row; its image is a real one unless a number of bytes is asked for."""
    height, width = bucket = BUCKETS[(part + row) % len(BUCKETS)]
    key = f"part{part}/{row:05d}"
    if num_bytes is None:
        rgb_HWC = np.full((*bucket, 3), (40 * part % 256, row % 256, 128), np.uint8)
        image = encode_image(rgb_HWC, image_format="jpeg", parameters={})
    else:
        image = b"\xff\xd8" + bytes(num_bytes)
    return Sample(
        id=key if crop is None else f"{key}#{crop}",
        row_index=row,
        captions=(f"caption of {key}", "über\nzwei Zeilen")[: 1 + row % 2],
        image=image,
        original_height=height * (1 + row % 5),
        original_width=width * (1 + row % 5),
        crop_top=0,
        crop_left=crop or 0,
        target_height=height,
        target_width=width,
        flip=row % 4 == 0,
        source=f"s3://bucket/{part:05d}.tar#{row}.jpg",
        content_sha256=hashlib.sha256(key.encode()).hexdigest(),
        upscale=1 / (1 + row % 5) if row % 7 else 1.5,
        phash=row_hash(part, row),
        aesthetic=None if row % 3 == 0 else row % 10 + 0.1,
        notes=("cmyk", "exif_rotated")[: row % 3],
        metadata='{"punsafe": 0.1}',
    )


def row_hash(part: int, row: int) -> int:
    return (part << 40 | row) ^ (2**64 - 1)


def make_rejection(part: int, row: int) -> Rejection:
    reason = [RejectReason.TOO_SMALL, RejectReason.CORRUPT_IMAGE][row % 2]
    return Rejection(
        id=f"part{part}/{row:05d}", row_index=row, source=f"{part:05d}.tar#{row}.jpg",
        reason=reason, detail="<b>10 px</b>, expected 64", captions=("a",),
    )  # fmt: skip


def stage(store: Store, parts: Sequence[Sequence[Result]], *, unit_bytes: int = 2000) -> Store:
    """Writes and commits all staged parts of the output ``store``."""
    staging = staging_store(store)
    for part, results in enumerate(parts):
        commit_part(staging, write_staged(staging, part, results, unit_bytes=unit_bytes))
    return staging


def plan(
    staging: Store,
    *,
    seed: int = 0,
    group_bytes: int = 1 << 20,
    duplicates: Sequence[tuple[int, int]] = (),
) -> Layout:
    """Plans and writes the layout; ``duplicates`` are positions of losers and winners."""
    index = read_staged_index(staging)
    rows = read_staged_rows(staging, index)
    layout = plan_layout(index, seed=seed, group_bytes=group_bytes)
    losers, winners = [loser for loser, _ in duplicates], [winner for _, winner in duplicates]
    are_exact = [False] * len(duplicates)
    write_layout(staging, layout, duplicates_table(rows, losers, winners, are_exact))
    return layout


def finish(
    store: Store,
    staging: Store,
    layout: Layout,
    *,
    output_format: SampleFormat = "parquet",
    encode: EncodeBucket | None = None,
) -> list[PartRecord]:
    """Finishes and commits all groups."""
    info = DatasetInfo(
        name=SAMPLES_SCHEMA_NAME, version=SAMPLES_SCHEMA_VERSION, num_parts=layout.num_groups
    )
    write_run_files(store, "", info)
    records = []
    for group in range(layout.num_groups):
        record = finish_group(
            store, staging, layout, group, output_format=output_format, encode=encode
        )
        commit_part(store, record)
        records.append(record)
    return records


def plain_rows(num_rows: int, *, part: int = 0, num_bytes: int | None = None) -> list[Result]:
    return [[make_sample(part, row, num_bytes=num_bytes)] for row in range(num_rows)]


def with_image(sample: Sample, image: bytes) -> Sample:
    return dataclasses.replace(sample, image=image)
