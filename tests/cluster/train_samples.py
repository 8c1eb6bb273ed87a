"""A small finished samples dataset with latents, written without a job."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from cluster.prepare_state import PreparePlan, write_plan
from sdxl_core.contract.samples import (
    SAMPLES_SCHEMA_NAME,
    SAMPLES_SCHEMA_VERSION,
    samples_schema,
)
from sdxl_core.data.buckets import Bucket
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
CAPTIONS = ("a red ball", "a blue box", "a green tree", "a yellow sun")


def write_samples(
    folder: Path, *, model_digest: str, with_aesthetic: bool = True, num_parts: int = 2
) -> str:
    """Rows of both buckets in every part; returns the dataset's path.

    ``model_digest`` is that of the model whose autoencoder made the latents.
    """
    store = open_store(folder)
    info = DatasetInfo(
        name=SAMPLES_SCHEMA_NAME, version=SAMPLES_SCHEMA_VERSION, num_parts=num_parts
    )
    write_run_files(store, 'model = "auto"\n', info)
    for part in range(num_parts):
        tables = [
            (bucket, _table(part, bucket, num_rows, with_aesthetic=with_aesthetic))
            for bucket, num_rows in BUCKETS.items()
        ]
        _write_part(store, part, tables)
    plan = PreparePlan(
        fingerprint="",
        identities={"model": model_digest},
        num_rows=num_parts * sum(BUCKETS.values()),
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


def _table(part: int, bucket: Bucket, num_rows: int, *, with_aesthetic: bool) -> pa.Table:
    rng = np.random.default_rng([part, *bucket])
    height, width = bucket
    shape = [8, height // 8, width // 8]
    moments = [rng.normal(size=shape).astype(np.float16) for _ in range(num_rows)]
    keys = [f"{part}/{height}x{width}/{row:03d}" for row in range(num_rows)]
    columns = {
        "id": keys,
        "captions": [list(CAPTIONS[row % 4 :]) for row in range(num_rows)],
        "moments": [moment.tobytes() for moment in moments],
        "moments_dtype": ["float16"] * num_rows,
        "moments_shape": [shape] * num_rows,
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
    return pa.table(columns, schema=samples_schema(latents=True))
