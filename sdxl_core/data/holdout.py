"""Samples that are set aside for good, by a hash of their id: never trained on, only measured.

Whether a sample is one of them depends on its id and the share alone: not on the order, the seed,
other samples, or which dataset it comes from. A larger share holds the smaller one's samples.

Legend: N samples, U units.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import Bucket
from sdxl_core.data.manifest import SampleManifest
from sdxl_core.storage.sample_reading import read_unit
from sdxl_core.storage.stores import open_file
from sdxl_core.storage.threads import map_in_order

_NUM_THREADS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldRow:
    """Where one sample that is set aside lies.

    Args:
        url: of its file.
        unit: which unit of the file.
        row: which row of the unit.
        bucket: (height, width), pixels.
    """

    url: str
    unit: int
    row: int
    bucket: Bucket


def holdout_places(ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """Where the hash of each id lies between 0 and 1, float64[N]; below the share it is held out.

    53 bits of BLAKE2b over the UTF-8 id. Changing this function changes what has been trained on.
    """
    digests = (
        hashlib.blake2b(
            sample_id.encode("utf-8", errors="surrogatepass"), digest_size=8, person=b"holdout"
        ).digest()
        for sample_id in ids
    )
    return np.array([int.from_bytes(digest, "big") >> 11 for digest in digests]) / 2.0**53


def set_aside(
    manifest: SampleManifest,
    share: float,
    *,
    num_measured: int,
    retries: int = 6,
    timeout_s: float = 30.0,
) -> tuple[SampleManifest, list[HeldRow]]:
    """Counts what is left to train on, and finds the samples to measure. Reads the ids of all.

    Args:
        manifest: of all samples.
        share: of the samples that is set aside, above 0 and below 1.
        num_measured: at most so many of them are returned: those with the smallest hashes.
        retries: tries of one storage operation.
        timeout_s: of one storage operation.

    Returns:
        The manifest with the counts of those that are left, without units that have none; and the
        rows to measure, in order of bucket, then of their hashes.

    Raises:
        ConfigError: nothing is set aside, or nothing is left.
        StoreError: a file cannot be read.
    """

    def places_of(unit: int) -> npt.NDArray[np.float64]:
        url = manifest.files[manifest.unit_file[unit]]
        store, path = open_file(url, retries=retries, timeout_s=timeout_s)
        table = read_unit(store, path, int(manifest.unit_index[unit]), ("id",))
        return holdout_places(table["id"].to_pylist())

    rows_U = manifest.unit_rows.copy()
    found: list[tuple[float, HeldRow]] = []
    units = map_in_order(places_of, range(manifest.num_units), num_threads=_NUM_THREADS)
    for unit, place_N in enumerate(units):
        (held,) = np.nonzero(place_N < share)
        rows_U[unit] -= len(held)
        found += ((float(place_N[row]), _held_row(manifest, unit, int(row))) for row in held)
    kept = rows_U > 0
    if not found or not kept.any():
        raise ConfigError(
            f"holdout: found {len(found)} of {manifest.num_rows} samples with --holdout {share}, "
            "expected some, and some that are left; use another share, or more samples"
        )
    found.sort(key=lambda pair: (pair[0], pair[1].url, pair[1].unit, pair[1].row))
    measured = sorted(found[:num_measured], key=lambda pair: pair[1].bucket)
    rest = dataclasses.replace(
        manifest,
        unit_bucket=manifest.unit_bucket[kept],
        unit_file=manifest.unit_file[kept],
        unit_index=manifest.unit_index[kept],
        unit_rows=rows_U[kept],
        unit_dataset=manifest.unit_dataset[kept],
    )
    return rest, [row for _, row in measured]


def groups_of_one_size(rows: Sequence[HeldRow], size: int) -> Iterator[list[HeldRow]]:
    """Rows in groups of one bucket, ``size`` at most; the same groups whoever measures them."""
    group: list[HeldRow] = []
    for row in rows:
        if group and (len(group) == size or row.bucket != group[0].bucket):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _held_row(manifest: SampleManifest, unit: int, row: int) -> HeldRow:
    return HeldRow(
        url=manifest.files[manifest.unit_file[unit]],
        unit=int(manifest.unit_index[unit]),
        row=row,
        bucket=manifest.buckets[manifest.unit_bucket[unit]],
    )
