"""What there is to train on: the units of finished samples datasets, as arrays.

A unit is the smallest thing that is read whole (``storage.sample_reading.read_unit``): a row group
of a parquet file, or a tar. All samples of a unit are in one bucket. A manifest holds some 20 bytes
for each unit and nothing for a row, so a hundred million rows are some tens of megabytes.

Legend: U units, F files.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sdxl_core.contract.errors import ConfigError, SchemaError
from sdxl_core.data.buckets import Bucket
from sdxl_core.storage.sample_units import list_sample_units
from sdxl_core.storage.stores import open_store

MAX_BUCKETS = 1 << 16
_DTYPES = {
    "unit_bucket": np.int32,
    "unit_file": np.int32,
    "unit_index": np.int32,
    "unit_rows": np.int32,
    "unit_dataset": np.int16,
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampleManifest:
    """The units of one or several samples datasets.

    Args:
        buckets: (height, width) in pixels, each once.
        files: URLs of the files, each once.
        unit_bucket: number of each unit's bucket, int32[U].
        unit_file: number of the file that holds it, int32[U].
        unit_index: which one of its file it is, from 0, int32[U].
        unit_rows: samples in it, at least 1, int32[U].
        unit_dataset: number of its dataset, int16[U].
        dataset_weights: how often a row of each dataset is seen in one pass, on average; > 0. With
            0.5 half of the dataset's units are in a pass, and the others in the next one.
        dataset_digests: of the contents of each dataset's files. With them the digest of the
            manifest does not depend on where the files lie.

    Raises:
        SchemaError: arrays that do not fit one another.
        ConfigError: a weight that is not above 0.
    """

    buckets: tuple[Bucket, ...]
    files: tuple[str, ...]
    unit_bucket: npt.NDArray[np.int32]
    unit_file: npt.NDArray[np.int32]
    unit_index: npt.NDArray[np.int32]
    unit_rows: npt.NDArray[np.int32]
    unit_dataset: npt.NDArray[np.int16]
    dataset_weights: tuple[float, ...] = (1.0,)
    dataset_digests: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for number, weight in enumerate(self.dataset_weights):
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigError(
                    f"weight of dataset {number}: found {weight!r}, expected a number above 0; "
                    "leave the dataset out to train without it"
                )
        found = {name: getattr(self, name) for name in _DTYPES}
        shapes = {name: (array.dtype.name, array.shape) for name, array in found.items()}
        if any(
            array.dtype != _DTYPES[name] or array.shape != (self.num_units,)
            for name, array in found.items()
        ):
            raise SchemaError(f"manifest: found {shapes}, expected int32 (dataset: int16), [U]")
        if len(self.buckets) > MAX_BUCKETS:
            raise SchemaError(f"manifest: {len(self.buckets)} buckets, expected <= {MAX_BUCKETS}")
        for name, limit in (
            ("unit_bucket", len(self.buckets)),
            ("unit_file", len(self.files)),
            ("unit_dataset", len(self.dataset_weights)),
            ("unit_index", 1 << 31),
        ):
            _check_range(name, found[name], 0, limit)
        _check_range("unit_rows", self.unit_rows, 1, 1 << 31)

    @property
    def num_units(self) -> int:
        """How many units there are."""
        return len(self.unit_rows)

    @functools.cached_property
    def num_rows(self) -> int:
        """Samples in all units, each counted once."""
        return int(self.unit_rows.sum(dtype=np.int64))

    @functools.cached_property
    def rows_of_bucket(self) -> dict[Bucket, int]:
        """Samples of each bucket, each counted once."""
        # Sums of float64 weights are exact below 2**53 rows.
        rows = np.bincount(self.unit_bucket, self.unit_rows, len(self.buckets))
        return {bucket: int(count) for bucket, count in zip(self.buckets, rows, strict=True)}

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 in lower-case hex: with equal digests, equal plans give equal samples."""
        sha = hashlib.sha256()
        content = self.dataset_digests or self.files
        head = [self.buckets, [repr(float(weight)) for weight in self.dataset_weights], content]
        sha.update(json.dumps(head).encode())
        for name, dtype in _DTYPES.items():
            sha.update(np.ascontiguousarray(getattr(self, name)).astype(dtype).astype("<i4").data)
        return sha.hexdigest()


def manifest_of(
    urls: Sequence[str], weights: Sequence[float] | None = None, *, retries: int = 6
) -> SampleManifest:
    """The manifest of finished samples datasets; nothing but commit records and footers is read.

    Args:
        urls: outputs of ``sdxl prepare``, local or ``s3://``, each once.
        weights: how often a row of each is seen in a pass, on average; > 0, default 1.
        retries: how often a passing failure of a store is tried again.

    Raises:
        ConfigError: no dataset, one twice, or weights that do not fit.
        SchemaError: a dataset is not finished, damaged, or empty.
        StoreError: a file cannot be read; the message names it.
    """
    weights = [1.0] * len(urls) if weights is None else weights
    stores = [open_store(url, retries=retries) for url in urls]
    places = [store.url for store in stores]
    if not stores or len(set(places)) < len(places) or len(weights) != len(places):
        raise ConfigError(
            f"samples: found {places} with the weights {list(weights)}, expected at least one "
            "dataset, each once and with one weight; to see one more often, give it a larger weight"
        )
    found = [list_sample_units(store) for store in stores]
    for place, units in zip(places, found, strict=True):
        if not len(units.rows_U):
            raise SchemaError(f"{place}: found no samples, every row was rejected; see its report")
    file_bucket = [bucket for units in found for bucket in units.file_bucket]
    buckets = tuple(sorted(set(file_bucket)))
    numbers = {bucket: number for number, bucket in enumerate(buckets)}
    bucket_F = np.array([numbers[bucket] for bucket in file_bucket], np.int32)
    first_file = np.cumsum([0, *(len(units.files) for units in found)], dtype=np.int32)
    unit_file = np.concatenate(
        [units.file_U + first for units, first in zip(found, first_file, strict=False)]
    )
    return SampleManifest(
        buckets=buckets,
        files=tuple(
            store.join(path)
            for store, units in zip(stores, found, strict=True)
            for path in units.files
        ),
        unit_bucket=bucket_F[unit_file],
        unit_file=unit_file,
        unit_index=np.concatenate([units.index_U for units in found]),
        unit_rows=np.concatenate([units.rows_U for units in found]),
        unit_dataset=np.repeat(
            np.arange(len(found), dtype=np.int16), [len(units.rows_U) for units in found]
        ),
        dataset_weights=tuple(map(float, weights)),
        dataset_digests=tuple(units.digest for units in found),
    )


def _check_range(name: str, array: npt.NDArray[Any], least: int, limit: int) -> None:
    if len(array) and not (least <= array.min() and array.max() < limit):
        raise SchemaError(
            f"manifest: {name} from {array.min()} to {array.max()}, expected {least} to {limit - 1}"
        )
