"""A sheet of small pictures for each bucket, to look at before days of training on them.

``thumbnails/128x152.jpg``: the first samples of the bucket, which are random ones as the dataset is
shuffled, each with its caption and with what happened to it.
"""

import io
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from PIL import Image

from sdxl_core.contract.errors import RowError
from sdxl_core.contract.samples import SAMPLE_IMAGE_COLUMN
from sdxl_core.storage.contact_sheet import Cell, draw_contact_sheet, fitted
from sdxl_core.storage.image_files import decode_image
from sdxl_core.storage.parts import read_part_records
from sdxl_core.storage.previews import read_previews
from sdxl_core.storage.sample_parts import Bucket, bucket_of_path, read_first_samples
from sdxl_core.storage.sample_totals import UPSCALED_ABOVE
from sdxl_core.storage.staged_parts import staging_store
from sdxl_core.storage.stores import Store

logger = logging.getLogger(__name__)

NUM_CELLS = 12
_JPEG_QUALITY = 85


def write_thumbnail_sheets(
    store: Store, buckets: Iterable[tuple[Bucket, pa.Table]], *, num_cells: int = NUM_CELLS
) -> dict[Bucket, str]:
    """Writes a sheet for each of ``buckets``, whose rows are samples with their pictures.

    Returns:
        The path of each sheet, relative to the output directory.

    Raises:
        StoreError: if a sheet cannot be written. A picture that cannot be read is left out.
    """
    paths: dict[Bucket, str] = {}
    for (height, width), samples in buckets:
        cells = [cell for row in samples.slice(0, num_cells).to_pylist() for cell in _cells(row)]
        title = f"{height} × {width} pixels, height × width"
        sheet = Image.open(io.BytesIO(draw_contact_sheet(cells, title)))
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=_JPEG_QUALITY)
        path = f"thumbnails/{height}x{width}.jpg"
        store.write_bytes(path, buffer.getvalue())
        paths[height, width] = path
    return paths


def first_samples(
    store: Store, *, num_samples: int = NUM_CELLS
) -> Iterable[tuple[Bucket, pa.Table]]:
    """The first samples of every bucket of a finished dataset.

    Where latents are kept it is those whose small pictures are still staged, if any.
    """
    previews = read_previews(staging_store(store))
    found: dict[Bucket, list[str]] = {}
    for record in read_part_records(store):
        for file in record.files:
            bucket = bucket_of_path(file.path)
            if bucket is not None:
                found.setdefault(bucket, []).append(file.path)
    for bucket, paths in sorted(found.items()):
        if bucket in previews:
            yield bucket, previews[bucket].slice(0, num_samples)
            continue
        tables: list[pa.Table] = []
        for path in paths:
            tables.append(read_first_samples(store, path, num_samples=num_samples))
            if sum(table.num_rows for table in tables) >= num_samples:
                break
        samples = pa.concat_tables(tables)
        if SAMPLE_IMAGE_COLUMN in samples.column_names:
            yield bucket, samples.slice(0, num_samples)


def _cells(row: Mapping[str, Any]) -> list[Cell]:
    try:
        rgb_HWC = fitted(decode_image(row[SAMPLE_IMAGE_COLUMN]))
    except RowError as error:
        logger.warning("sample %r is not on the sheet: %s", row["id"], error)
        return []
    return [Cell(rgb_HWC=rgb_HWC, prompt=row["captions"][0], note=_note(row))]


def _note(row: Mapping[str, Any]) -> str:
    """What happened to the picture, in a line of its cell."""
    words = [f"{row['original_height']} × {row['original_width']}"]
    words.append(f"crop {row['crop_top']}, {row['crop_left']}")
    if row["upscale"] > UPSCALED_ABOVE:
        words.append(f"enlarged ×{row['upscale']:.2f}")
    if row["flip"]:
        words.append("flipped")
    return " · ".join([*words, *row["notes"]])
