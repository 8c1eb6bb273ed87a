"""A small finished samples dataset of latents or pictures, written without a job."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.prepare_state import PreparePlan, write_plan
from sdxl_core.contract.samples import (
    SAMPLE_IMAGE_COLUMN,
    SAMPLES_SCHEMA_NAME,
    SAMPLES_SCHEMA_VERSION,
    samples_schema,
)
from sdxl_core.data.buckets import Bucket
from sdxl_core.storage.image_files import encode_image
from sdxl_core.storage.parts import (
    DatasetInfo,
    PartRecord,
    commit_part,
    write_run_files,
    write_summary,
)
from sdxl_core.storage.sample_parts import write_sample_part
from sdxl_core.storage.stores import Store, open_store

BUCKETS: dict[Bucket, int] = {(32, 32): 21, (32, 64): 14}
# A refiner halves three times. From 32 px it comes to 1 x 1, and on a CPU the bfloat16 gradient of
# the weight of a convolution with stride 2 on 1 x 1 reads memory that nobody wrote, PyTorch's or
# oneDNN's fault: now and then it is not finite.
REFINER_BUCKETS: dict[Bucket, int] = {(64, 64): 21, (64, 128): 14}
CAPTIONS = ("a red ball", "a blue box", "a green tree", "a yellow sun")


def write_samples(
    folder: Path,
    *,
    model_digest: str,
    with_aesthetic: bool = True,
    num_parts: int = 2,
    latents: bool = True,
    buckets: Mapping[Bucket, int] = BUCKETS,
) -> str:
    """Rows of both buckets in every part; returns the dataset's path.

    ``model_digest`` is that of the model whose autoencoder made the latents; without latents there
    are pictures.
    """
    store = open_store(folder)
    info = DatasetInfo(
        name=SAMPLES_SCHEMA_NAME, version=SAMPLES_SCHEMA_VERSION, num_parts=num_parts
    )
    write_run_files(store, 'model = "auto"\n', info)
    for part in range(num_parts):
        tables = [
            (
                bucket,
                _table(part, bucket, num_rows, with_aesthetic=with_aesthetic, latents=latents),
            )
            for bucket, num_rows in buckets.items()
        ]
        _write_part(store, part, tables)
    plan = PreparePlan(
        fingerprint="",
        identities={"model": model_digest},
        num_rows=num_parts * sum(buckets.values()),
        num_slices=num_parts,
        merged={},
        sources=[],
    )
    write_plan(store, plan, np.zeros(num_parts, np.int64))
    write_summary(store, {})
    return store.url


def _write_part(store: Store, part: int, tables: list[tuple[Bucket, pa.Table]]) -> None:
    num_rows = sum(table.num_rows for _, table in tables)
    record = PartRecord(
        part=part,
        num_rows=num_rows,
        num_by_status={"sample": num_rows, "rejected": 0},
        num_by_reason={},
        files=tuple(write_sample_part(store, part, tables)),
    )
    commit_part(store, record)


def _table(
    part: int, bucket: Bucket, num_rows: int, *, with_aesthetic: bool, latents: bool
) -> pa.Table:
    rng = np.random.default_rng([part, *bucket])
    height, width = bucket
    keys = [f"{part}/{height}x{width}/{row:03d}" for row in range(num_rows)]
    seen = _latents(rng, bucket, num_rows) if latents else _pictures(rng, bucket, num_rows)
    columns = {
        "id": keys,
        "captions": [list(CAPTIONS[row % 4 :]) for row in range(num_rows)],
        **seen,
        "original_height": [2 * height] * num_rows,
        "original_width": [2 * width] * num_rows,
        "crop_top": [0] * num_rows,
        "crop_left": [row % 5 for row in range(num_rows)],
        "target_height": [height] * num_rows,
        "target_width": [width] * num_rows,
        "flip": [False] * num_rows,
        "aesthetic": [5.0 + row % 3 if with_aesthetic else None for row in range(num_rows)],
        "source": keys,
        "content_sha256": keys,
        "upscale": [0.5] * num_rows,
        "notes": [[]] * num_rows,
        "metadata": ["{}"] * num_rows,
        "source_slice": [part] * num_rows,
        "row_index": list(range(num_rows)),
    }
    return pa.table(columns, schema=samples_schema(latents=latents))


def _latents(rng: np.random.Generator, bucket: Bucket, num_rows: int) -> dict[str, list[Any]]:
    shape = [8, bucket[0] // 8, bucket[1] // 8]
    moments = [rng.normal(size=shape).astype(np.float16) for _ in range(num_rows)]
    return {
        "moments": [moment.tobytes() for moment in moments],
        "moments_dtype": ["float16"] * num_rows,
        "moments_shape": [shape] * num_rows,
    }


def _pictures(rng: np.random.Generator, bucket: Bucket, num_rows: int) -> dict[str, list[Any]]:
    """Squares of one colour, 8 px wide."""
    coarse = rng.integers(0, 256, (num_rows, bucket[0] // 8, bucket[1] // 8, 3), np.uint8)
    pictures = coarse.repeat(8, axis=1).repeat(8, axis=2)
    return {
        SAMPLE_IMAGE_COLUMN: [
            encode_image(rgb_HWC, image_format="png", parameters=None) for rgb_HWC in pictures
        ]
    }
