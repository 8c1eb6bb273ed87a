"""A group of staged units becomes one part of the dataset.

In: a layout and its group. Out: the part's files and its commit record, not yet committed. The
bytes are a function of the staged parts and the layout: a task that was killed and starts again
writes the same. Memory: the pictures of one group, and once more those of its largest bucket.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdxl_core.contract.errors import SchemaError
from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.contract.samples import SAMPLE_IMAGE_COLUMN, rejected_schema, staged_schema
from sdxl_core.contract.seeds import row_seed
from sdxl_core.storage.parts import FileEntry, PartRecord
from sdxl_core.storage.previews import PREVIEWED_GROUPS, small_pictures, write_previews
from sdxl_core.storage.sample_parts import (
    Bucket,
    SampleFormat,
    parquet_bytes,
    rejected_path,
    write_entry,
    write_sample_part,
)
from sdxl_core.storage.sample_totals import (
    SampleTotals,
    add_totals,
    tally_rejected,
    tally_samples,
    totals_to_json,
)
from sdxl_core.storage.staged_parts import read_parquet, staged_rejected_path, unit_path
from sdxl_core.storage.staging_layout import Layout, read_duplicates
from sdxl_core.storage.stores import Store
from sdxl_core.storage.threads import map_in_order

EncodeBucket = Callable[[Bucket, pa.Table], pa.Table]
"""Samples of one bucket with ``samples_schema``, in; out: the same rows in the same order, with the
columns of ``samples_schema(latents=True)``. Null moments mean that they were not finite."""

_NUM_READ_THREADS = 8


def finish_group(
    store: Store,
    staging: Store,
    layout: Layout,
    group: int,
    *,
    output_format: SampleFormat = "parquet",
    encode: EncodeBucket | None = None,
) -> PartRecord:
    """Writes part ``group`` of the dataset; the caller commits the record.

    Args:
        store: the output directory.
        staging: its staged parts, with the layout and the duplicates written.
        layout: as it is written in ``staging``.
        group: which one, 0 to ``layout.num_groups - 1``.
        output_format: of the samples.
        encode: turns pictures into moments; None keeps pictures. If any crop of a source row has
            none, the whole row is rejected. Of some groups small pictures stay in ``staging``.

    Returns:
        The record. Its rows are samples and rejected rows; ``extra`` holds ``num_source_rows`` and
        the part's ``totals``.

    Raises:
        SchemaError: a source row came out both as a sample and as rejected, or twice as rejected.
        StoreError: a file cannot be read or written.
    """
    started_s = time.monotonic()
    staged, rejected = read_group(staging, layout, group)
    totals: list[SampleTotals] = []
    keys: list[set[tuple[int, int]]] = []
    previews: list[pa.Table] = []

    def finished_buckets() -> Iterator[tuple[Bucket, pa.Table]]:
        for bucket, samples in split_by_bucket(staged, seed=layout.seed):
            if encode is not None:
                encoded = encode(bucket, samples)
                is_bad_N = _rows_without_moments(encoded)
                rejected.append(_as_rejected(encoded.filter(pa.array(is_bad_N))))
                if group < PREVIEWED_GROUPS:
                    previews.append(small_pictures(samples.filter(pa.array(~is_bad_N))))
                samples = encoded.filter(pa.array(~is_bad_N))
            if samples.num_rows:
                keys.append(set(_row_keys(samples)))
                totals.append(tally_samples(samples, num_source_rows=len(keys[-1])))
                yield bucket, samples

    files = write_sample_part(store, group, finished_buckets(), output_format=output_format)
    write_previews(staging, group, previews)
    rejected_rows = _in_source_order(rejected)
    keys.append(set(_row_keys(rejected_rows)))
    totals.append(tally_rejected(rejected_rows))
    total = add_totals(totals)
    if len(set().union(*keys)) != total.num_source_rows:
        raise SchemaError(f"part {group}: a source row has two results, expected one of each row")
    data = parquet_bytes(rejected_rows, row_group_rows=1 << 16)
    files.append(write_entry(store, rejected_path(group), data))
    return _record(group, files, total, seconds=time.monotonic() - started_s)


def _in_source_order(rejected: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(rejected).sort_by(
        [("source_slice", "ascending"), ("row_index", "ascending")]
    )


def _record(
    group: int, files: list[FileEntry], total: SampleTotals, *, seconds: float
) -> PartRecord:
    return PartRecord(
        part=group,
        num_rows=total.num_samples + total.num_rejected,
        num_by_status={"sample": total.num_samples, "rejected": total.num_rejected},
        num_by_reason=total.num_by_reason,
        files=tuple(files),
        seconds=seconds,
        extra={"num_source_rows": total.num_source_rows, "totals": totals_to_json(total)},
    )


def read_group(staging: Store, layout: Layout, group: int) -> tuple[pa.Table, list[pa.Table]]:
    """The staged samples of a group that are kept, and its rejected rows, duplicates among them."""
    units = layout.units(group)
    paths = [unit_path(part, unit) for part, unit in units]
    tables = list(
        map_in_order(lambda path: read_parquet(staging, path), paths, num_threads=_NUM_READ_THREADS)
    )
    samples = pa.concat_tables([staged_schema().empty_table(), *tables])
    rejected = [rejected_schema().empty_table()]
    rejected += [
        read_parquet(staging, staged_rejected_path(part))
        for part in layout.parts_with_rejected(group)
    ]
    duplicates = read_duplicates(staging, sorted({part for part, _ in units}))
    reasons = dict(
        zip(
            _row_keys(duplicates),
            zip(duplicates["reason"].to_pylist(), duplicates["detail"].to_pylist(), strict=True),
            strict=True,
        )
    )
    if not reasons:
        return samples, rejected  # a filter would copy all pictures
    is_duplicate_N = np.array([key in reasons for key in _row_keys(samples)], np.bool_)
    losers = _first_of_each_row(samples.filter(pa.array(is_duplicate_N)))
    if losers.num_rows:
        found = [reasons[key] for key in _row_keys(losers)]
        rejected.append(_rejected(losers, [r for r, _ in found], [detail for _, detail in found]))
    return samples.filter(pa.array(~is_duplicate_N)), rejected


def split_by_bucket(staged: pa.Table, *, seed: int) -> Iterator[tuple[Bucket, pa.Table]]:
    """Each bucket with its samples, in an order that depends on the seed and the ids alone."""
    # Not the id as it is: a random crop may be drawn from the same function of seed and id, and
    # the samples of a part would come out sorted by their crops.
    keys = [row_seed(seed, f"order {sample_id}") for sample_id in staged["id"].to_pylist()]
    columns = [
        np.asarray(staged[name].to_numpy(), np.int64)
        for name in ("row_index", "source_slice", "target_width", "target_height")
    ]
    row_N, slice_N, width_N, height_N = columns
    order_N = np.lexsort((row_N, slice_N, np.array(keys, np.int64), width_N, height_N))
    sizes_N2 = np.stack([height_N[order_N], width_N[order_N]], axis=1)
    starts = np.flatnonzero(np.any(sizes_N2[1:] != sizes_N2[:-1], axis=1)) + 1
    plain = staged.drop_columns(["phash"])
    for positions in np.split(order_N, starts):
        if len(positions):
            bucket = int(height_N[positions[0]]), int(width_N[positions[0]])
            yield bucket, _rows_at(plain, positions)


def _rows_at(samples: pa.Table, positions: npt.NDArray[np.int64]) -> pa.Table:
    """Some rows; the pictures, nearly all of the bytes, are not copied as ``take`` would."""
    place = samples.schema.get_field_index(SAMPLE_IMAGE_COLUMN)
    pictures = samples.column(place)
    sizes = np.array([len(chunk) for chunk in pictures.chunks], np.int64)
    ends = np.cumsum(sizes)
    chunk_N = np.searchsorted(ends, positions, side="right")
    row_N = positions - (ends - sizes)[chunk_N]
    pieces = [
        pictures.chunk(chunk).slice(row, 1)
        for chunk, row in zip(chunk_N.tolist(), row_N.tolist(), strict=True)
    ]
    rest = samples.remove_column(place).take(pa.array(positions))
    return rest.add_column(place, samples.field(place), pa.chunked_array(pieces, pictures.type))


def _rows_without_moments(encoded: pa.Table) -> npt.NDArray[np.bool_]:
    keys = _row_keys(encoded)
    is_null = encoded["moments"].is_null().to_pylist()
    bad = {key for key, null in zip(keys, is_null, strict=True) if null}
    return np.array([key in bad for key in keys], np.bool_)


def _as_rejected(encoded: pa.Table) -> pa.Table:
    rows = _first_of_each_row(encoded)
    num_crops = Counter(_row_keys(encoded))
    details = [f"in one of {num_crops[key]} samples of the row" for key in _row_keys(rows)]
    return _rejected(rows, [str(RejectReason.NON_FINITE_LATENTS)] * rows.num_rows, details)


def _rejected(rows: pa.Table, reasons: Sequence[str], details: Sequence[str]) -> pa.Table:
    schema = rejected_schema()
    given = {"reason": pa.array(reasons, pa.string()), "detail": pa.array(details, pa.string())}
    columns = [
        given[field.name] if field.name in given else rows[field.name].cast(field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _first_of_each_row(samples: pa.Table) -> pa.Table:
    seen: dict[tuple[int, int], int] = {}
    for position, key in enumerate(_row_keys(samples)):
        seen.setdefault(key, position)
    return samples.take(pa.array(list(seen.values()), pa.int64()))


def _row_keys(table: pa.Table) -> list[tuple[int, int]]:
    """What tells the source row of each row."""
    parts, rows = table["source_slice"].to_pylist(), table["row_index"].to_pylist()
    return list(zip(parts, rows, strict=True))
