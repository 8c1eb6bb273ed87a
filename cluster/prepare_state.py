"""What a run of prepare was begun with, and what it holds so far; written beside the output.

``_plan.json``                what the first start fixed and later starts must find unchanged
``_staging/_counts.parquet``  rows of every slice, counted before anything was read
"""

import dataclasses
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.data.buckets import Bucket
from sdxl_core.storage.parts import read_part_records
from sdxl_core.storage.sample_totals import SampleTotals, add_totals, totals_from_json
from sdxl_core.storage.staged_parts import read_parquet, staging_store
from sdxl_core.storage.stores import Store
from sdxl_core.storage.threads import map_in_order

PLAN_FILE: Final = "_plan.json"
PLAN_VERSION: Final = 1
COUNTS_FILE: Final = "_counts.parquet"
_NUM_DELETE_THREADS = 16

Counts = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparePlan:
    """What the first start of a run fixed.

    ``identities`` are digests of what lies at the locations. ``merged`` says which bucket is used
    in place of another. ``sources`` are the sources with their weights, for those who sample later.
    """

    fingerprint: str
    identities: Mapping[str, str]
    num_rows: int
    num_slices: int
    merged: Mapping[Bucket, Bucket]
    sources: Sequence[Mapping[str, Any]]


def write_plan(store: Store, plan: PreparePlan, counts: Counts) -> None:
    """Writes the plan, after the counts: a plan that is there is whole."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"num_rows": counts}), buffer)
    staging_store(store).write_bytes(COUNTS_FILE, buffer.getvalue())
    document = {"version": PLAN_VERSION, **dataclasses.asdict(plan)}
    document["merged"] = [[list(bucket), list(other)] for bucket, other in plan.merged.items()]
    store.write_bytes(PLAN_FILE, (json.dumps(document, indent=1) + "\n").encode())


def read_plan(store: Store) -> PreparePlan | None:
    """What ``write_plan`` wrote; None if nothing was begun here."""
    if not store.exists(PLAN_FILE):
        return None
    document = json.loads(store.read_bytes(PLAN_FILE))
    document.pop("version")
    merged = {tuple(bucket): tuple(other) for bucket, other in document.pop("merged")}
    return PreparePlan(merged=merged, **document)


def read_counts(store: Store) -> Counts | None:
    """Rows of every slice, int64 ``(num_slices,)``; None if they are gone with what was staged."""
    if not staging_store(store).exists(COUNTS_FILE):
        return None
    table = read_parquet(staging_store(store), COUNTS_FILE)
    return np.asarray(table["num_rows"].to_numpy(), np.int64)


def refuse_other_inputs(plan: PreparePlan, identities: Mapping[str, str], out: str) -> None:
    """Checks that the inputs are those that the run was begun with.

    Raises:
        ConfigError: if one is not; the message says which.
    """
    lines = [
        f"{name}: {plan.identities.get(name)} -> {identities.get(name)}"
        for name in dict.fromkeys([*plan.identities, *identities])
        if plan.identities.get(name) != identities.get(name)
    ]
    if lines:
        raise ConfigError(
            f"{out} was begun with other inputs (names and sizes of the source's files, digest of "
            "the model, device):\n  "
            + "\n  ".join(lines)
            + "\nUse the same inputs to go on, or another OUT."
        )


def read_totals(store: Store) -> SampleTotals:
    """The sum over all finished parts, from their commit records."""
    return add_totals(
        totals_from_json(record.extra["totals"]) for record in read_part_records(store)
    )


def num_damaged(num_by_reason: Mapping[str, int]) -> int:
    """Rejected rows that no filter asked for."""
    return sum(num for word, num in num_by_reason.items() if not RejectReason(word).is_filter)


def delete_staging(store: Store) -> None:
    """Deletes what has become part of the dataset; nothing may be at work on it."""
    staging = staging_store(store)
    deletions = map_in_order(
        lambda file: staging.delete(file.path),
        staging.iter_files(),
        num_threads=_NUM_DELETE_THREADS,
    )
    for _ in deletions:
        pass
    if not store.url.startswith("s3://"):
        shutil.rmtree(staging.url, ignore_errors=True)  # empty folders
