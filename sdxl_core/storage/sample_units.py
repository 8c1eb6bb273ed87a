"""All units of a finished samples dataset as arrays: what a batch plan is made of.

Commit records and the ends of parquet files are read (the index files, of tars), no sample. The
rows found are held against the commit records.

Legend: U units.
"""

import dataclasses
import hashlib
from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sdxl_core.contract.errors import SchemaError
from sdxl_core.contract.samples import SAMPLES_SCHEMA_NAME, SAMPLES_SCHEMA_VERSION
from sdxl_core.storage.parts import (
    PartRecord,
    read_dataset_info,
    read_part_records,
    read_summary,
)
from sdxl_core.storage.sample_parts import Bucket, bucket_of_path
from sdxl_core.storage.sample_reading import iter_units
from sdxl_core.storage.stores import Store


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampleUnits:
    """The units of one dataset, by part, file and place in the file.

    Args:
        files: paths in the store.
        file_bucket: bucket of each file, (height, width) in pixels.
        file_U: number of the file that holds each unit, int32.
        index_U: which one of its file each unit is, from 0, int32.
        rows_U: samples in each unit, at least 1, int32.
        digest: SHA-256 over the paths and the contents of all files, lower-case hex.
    """

    files: tuple[str, ...]
    file_bucket: tuple[Bucket, ...]
    file_U: npt.NDArray[np.int32]
    index_U: npt.NDArray[np.int32]
    rows_U: npt.NDArray[np.int32]
    digest: str


def list_sample_units(store: Store) -> SampleUnits:
    """The units of the dataset in ``store``; many files are looked at in parallel.

    Raises:
        SchemaError: there is no finished samples dataset, or its rows are not those of its records.
        StoreError: a file cannot be read; the message names it.
    """
    num_parts = _num_parts(store)
    sha = hashlib.sha256()
    num_rows = 0

    def noted_records() -> Iterator[PartRecord]:
        nonlocal num_rows
        for record in read_part_records(store, range(num_parts)):
            num_rows += record.num_by_status.get("sample", 0)
            for entry in record.files:
                if bucket_of_path(entry.path) is not None:
                    sha.update(f"{entry.path}\0{entry.sha256}\n".encode())
            yield record

    files: list[str] = []
    buckets: list[Bucket] = []
    file_U, index_U, rows_U = array("i"), array("i"), array("i")
    for unit in iter_units(store, noted_records()):
        if not unit.num_rows:
            continue
        if not files or files[-1] != unit.path:
            files.append(unit.path)
            buckets.append(unit.bucket)
        file_U.append(len(files) - 1)
        index_U.append(unit.row_group)
        rows_U.append(unit.num_rows)
    if sum(rows_U) != num_rows:
        raise SchemaError(
            f"{store.url}: its files hold {sum(rows_U)} samples, its commit records say {num_rows};"
            " `sdxl fsck` tells which file is damaged"
        )
    return SampleUnits(
        files=tuple(files),
        file_bucket=tuple(buckets),
        file_U=np.array(file_U, np.int32),
        index_U=np.array(index_U, np.int32),
        rows_U=np.array(rows_U, np.int32),
        digest=sha.hexdigest(),
    )


def _num_parts(store: Store) -> int:
    info = read_dataset_info(store)
    found = "nothing that a job has begun"
    if info is not None:
        found = f"{info.name} version {info.version}"
        if (info.name, info.version) == (SAMPLES_SCHEMA_NAME, SAMPLES_SCHEMA_VERSION):
            if info.num_parts is not None and read_summary(store) is not None:
                return info.num_parts
            found += ", not finished"
    raise SchemaError(
        f"{store.url}: found {found}, expected the finished output of `sdxl prepare` "
        f"({SAMPLES_SCHEMA_NAME} version {SAMPLES_SCHEMA_VERSION}); give the same prepare command "
        "again until it says that it is finished"
    )
