"""What there is to train on: the units of finished samples datasets, as arrays.

A unit is the smallest thing that is read whole: a row group of a parquet file, or a run of samples
of a tar. All samples of a unit are in one bucket. A manifest holds some 20 bytes for each unit and
nothing for a row, so a hundred million rows are some tens of megabytes.

Legend: U units.
"""

import dataclasses
import functools
import hashlib
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sdxl_core.contract.errors import ConfigError, SchemaError
from sdxl_core.data.buckets import Bucket

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
        """SHA-256 over all of it, lower-case hex: equal digests mean equal plans."""
        sha = hashlib.sha256()
        head = [self.buckets, [repr(float(weight)) for weight in self.dataset_weights], self.files]
        sha.update(json.dumps(head).encode())
        for name, dtype in _DTYPES.items():
            sha.update(np.ascontiguousarray(getattr(self, name)).astype(dtype).astype("<i4").data)
        return sha.hexdigest()


def _check_range(name: str, array: npt.NDArray[Any], least: int, limit: int) -> None:
    if len(array) and not (least <= array.min() and array.max() < limit):
        raise SchemaError(
            f"manifest: {name} from {array.min()} to {array.max()}, expected {least} to {limit - 1}"
        )
