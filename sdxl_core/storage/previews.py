"""Small pictures of samples that are kept as latents, for the sheets at the end of a run.

``_staging/previews/part-00012.parquet``: the first samples of each bucket in group 12, each with
its picture at the size of a cell, ``staged_schema`` without the hash. Written by the task that
encodes, which has the pictures anyway, and deleted with all that was staged. Groups are random, so
some of the first ones hold enough of every bucket that is not rare.
"""

from collections.abc import Sequence

import pyarrow as pa

from sdxl_core.contract.errors import RowError
from sdxl_core.contract.samples import SAMPLE_IMAGE_COLUMN
from sdxl_core.storage.contact_sheet import fitted
from sdxl_core.storage.image_files import decode_image, encode_image
from sdxl_core.storage.sample_parts import Bucket, parquet_bytes
from sdxl_core.storage.staged_parts import read_parquet
from sdxl_core.storage.stores import Store

PREVIEWED_GROUPS = 8
NUM_PREVIEWS = 12  # of one bucket
_FOLDER = "previews"


def small_pictures(samples: pa.Table) -> pa.Table:
    """The first rows of ``samples`` with small pictures; those that cannot be read are left out."""
    first = samples.slice(0, NUM_PREVIEWS)
    pictures = [_small(data) for data in first[SAMPLE_IMAGE_COLUMN].to_pylist()]
    place = first.schema.get_field_index(SAMPLE_IMAGE_COLUMN)
    small = first.set_column(place, first.schema.field(place), pa.array(pictures, pa.binary()))
    return small.filter(pa.array([picture is not None for picture in pictures], pa.bool_()))


def write_previews(staging: Store, group: int, tables: Sequence[pa.Table]) -> None:
    """Writes the previews of a group: ``small_pictures`` of each of its buckets.

    Raises:
        StoreError: if they cannot be written.
    """
    if tables:
        staging.write_bytes(_path(group), parquet_bytes(pa.concat_tables(tables)))


def read_previews(staging: Store) -> dict[Bucket, pa.Table]:
    """Previews of all groups by bucket, up to ``NUM_PREVIEWS``; empty if pictures are kept.

    Raises:
        StoreError: if they cannot be read.
    """
    found: dict[Bucket, pa.Table] = {}
    for file in staging.iter_files(_FOLDER):
        table = read_parquet(staging, file.path)
        heights, widths = table["target_height"].to_pylist(), table["target_width"].to_pylist()
        buckets = list(zip(heights, widths, strict=True))
        for bucket in sorted(set(buckets)):
            mine = table.filter(pa.array([one == bucket for one in buckets], pa.bool_()))
            before = [found[bucket]] if bucket in found else []
            found[bucket] = pa.concat_tables([*before, mine]).slice(0, NUM_PREVIEWS)
    return found


def _small(data: bytes) -> bytes | None:
    try:
        rgb_HWC = decode_image(data)
    except RowError:
        return None
    return encode_image(fitted(rgb_HWC), image_format="jpeg", parameters=None)


def _path(group: int) -> str:
    return f"{_FOLDER}/part-{group:05d}.parquet"
