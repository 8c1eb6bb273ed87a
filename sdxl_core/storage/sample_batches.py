"""A finished samples dataset as batches of one shape, in one process.

Units are read by threads, some ahead; their pictures are decoded by other threads, straight into
the batches that they belong to. What is held is bounded: a few units of bytes, and the batches of
some pictures for each thread. For training that is spread over workers, and for its order of
samples, see ``cluster.ingest``; this is for a look, a small training, a measurement.

Shapes: B samples, H, W height and width in pixels, C channels.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdxl_core.contract.errors import RowError, StoreError
from sdxl_core.contract.samples import SAMPLE_IMAGE_COLUMN
from sdxl_core.storage.image_files import decode_image
from sdxl_core.storage.sample_parts import Bucket
from sdxl_core.storage.sample_reading import SampleUnit, read_unit
from sdxl_core.storage.stores import Store
from sdxl_core.storage.threads import map_in_order

_NUM_READERS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """Samples of one bucket.

    Args:
        bucket: (height, width) of the pictures, pixels.
        pixels_BHWC: uint8, RGB.
        rows: the other columns that were asked for, and ``path``, the file of each sample.
    """

    bucket: Bucket
    pixels_BHWC: npt.NDArray[np.uint8]
    rows: pa.Table


def iter_batches(
    store: Store,
    units: Iterable[SampleUnit],
    *,
    batch_size: int,
    columns: Sequence[str] = ("captions",),
    num_threads: int = 2,
    with_rest: bool = True,
) -> Iterator[SampleBatch]:
    """Batches in the order in which they fill up as ``units`` are gone through.

    Args:
        store: of the dataset; its samples are pictures.
        units: to read, in this order.
        batch_size: samples of one batch, >= 1.
        columns: wanted beside the picture.
        num_threads: that decode.
        with_rest: yield what does not fill a batch as well, at the end.

    Raises:
        StoreError: a file or a picture cannot be read; the message names the file.
        SchemaError: a column is missing; of latents there are no pictures.
    """
    names = [SAMPLE_IMAGE_COLUMN, *columns]

    def read(unit: SampleUnit) -> tuple[Bucket, pa.Table]:
        table = read_unit(store, unit.path, unit.row_group, names)
        return unit.bucket, table.append_column("path", pa.repeat(unit.path, table.num_rows))

    tables = map_in_order(read, units, num_threads=_NUM_READERS)
    jobs = (
        job
        for bucket, rows in _of_one_size(tables, batch_size, with_rest=with_rest)
        for job in _jobs(store, bucket, rows)
    )
    for batch in map_in_order(_Job.run, jobs, num_threads=num_threads):
        if batch is not None:
            yield batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """One picture, its place in a batch, and the batch if it is the last one of it."""

    data: bytes
    pixels_HWC: npt.NDArray[np.uint8]
    url: str
    batch: SampleBatch | None

    def run(self) -> SampleBatch | None:
        """Decodes the picture; jobs end in order, so a batch that comes out is complete."""
        try:
            pixels_HWC = decode_image(self.data)
        except RowError as error:
            raise StoreError(f"{self.url} holds a picture that cannot be read: {error}",
                             retryable=False) from error  # fmt: skip
        if pixels_HWC.shape != self.pixels_HWC.shape:
            raise StoreError(
                f"{self.url} holds a picture of {pixels_HWC.shape[:2]}, expected "
                f"{self.pixels_HWC.shape[:2]} as its folder says",
                retryable=False,
            )
        self.pixels_HWC[:] = pixels_HWC
        return self.batch


def _jobs(store: Store, bucket: Bucket, rows: pa.Table) -> Iterator[_Job]:
    images = rows[SAMPLE_IMAGE_COLUMN].to_pylist()
    paths = rows["path"].to_pylist()
    batch = SampleBatch(
        bucket=bucket,
        pixels_BHWC=np.empty((len(images), *bucket, 3), np.uint8),
        rows=rows.drop_columns([SAMPLE_IMAGE_COLUMN]),
    )
    for number, (data, path) in enumerate(zip(images, paths, strict=True)):
        is_last = number == len(images) - 1
        yield _Job(
            data=data,
            pixels_HWC=batch.pixels_BHWC[number],
            url=store.join(path),
            batch=batch if is_last else None,
        )


def _of_one_size(
    tables: Iterable[tuple[Bucket, pa.Table]], batch_size: int, *, with_rest: bool
) -> Iterator[tuple[Bucket, pa.Table]]:
    """Rows of one bucket, ``batch_size`` at a time."""
    waiting: dict[Bucket, pa.Table] = {}
    for bucket, table in tables:
        rows = pa.concat_tables([waiting.pop(bucket), table]) if bucket in waiting else table
        while rows.num_rows >= batch_size:
            yield bucket, rows.slice(0, batch_size)
            rows = rows.slice(batch_size)
        if rows.num_rows:
            waiting[bucket] = rows
    if with_rest:
        yield from waiting.items()
