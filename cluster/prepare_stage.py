"""One slice of the source becomes one staged part: read, judged, decoded, cut and committed."""

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch

from cluster import failures
from cluster.prepare_work import PrepareWork, slice_name
from cluster.reporter import Reporter
from cluster.reports import fatal_report, report
from sdxl_core.contract.errors import StoreError
from sdxl_core.contract.samples import Rejection, Sample
from sdxl_core.data.sample_maker import make_samples
from sdxl_core.data.scorers import load_scorer
from sdxl_core.storage.parts import PartRecord, commit_part
from sdxl_core.storage.sources import read_slice
from sdxl_core.storage.staged_parts import staging_store, write_staged


def stage_slice(block: pa.Table, work: PrepareWork, hub: Any) -> pa.Table:
    """Stages the slice ``part`` of the block, which has ``num_rows`` rows.

    Returns:
        A report: rows, samples and rejected rows by reason.
    """
    torch.set_num_threads(1)  # a task has one core
    part, num_rows = block["part"][0].as_py(), block["num_rows"][0].as_py()
    reporter = Reporter(hub, "stage")
    started = time.perf_counter()
    made = stage_part(work, part, num_rows, attempt=reporter.begin(part))
    if isinstance(made, str):
        return fatal_report(part, made)
    reporter.end(part, ("stage", num_rows, time.perf_counter() - started))
    return report(part, {"num_rows": num_rows, "num_by_reason": made.num_by_reason})


def stage_part(work: PrepareWork, part: int, num_rows: int, *, attempt: int) -> PartRecord | str:
    """Stages and commits one slice.

    Args:
        work: The run.
        part: Which slice.
        num_rows: As many were counted in it.
        attempt: How often this was begun, this time included.

    Returns:
        The record, or the message that stops the job.
    """
    return failures.guard_part(
        lambda: _stage(work, part, num_rows),
        what=slice_name(work.sources.slice(part)),
        attempt=attempt,
        max_attempts=work.max_attempts,
    )


def _stage(work: PrepareWork, part: int, num_rows: int) -> PartRecord:
    """All of the slice, or an error: a record is put only if every counted row is in it."""
    staging = staging_store(work.open_output())
    record = write_staged(staging, part, _results(work, part))
    num_found = record.extra["num_source_rows"]
    if num_found != num_rows:
        raise StoreError(
            f"{num_found} rows came out, but {num_rows} were counted independently; the file is "
            "damaged, or it changed during the run",
            retryable=True,
        )
    commit_part(staging, record)
    return record


def _results(work: PrepareWork, part: int) -> Iterator[list[Sample] | Rejection]:
    if work.options.scorer is not None:
        load_scorer(work.options.scorer)  # a machine without it stops the job, not every row
    piece = work.sources.slice(part)
    for raw in read_slice(piece, retries=work.retries, timeout_s=work.timeout_s):
        yield failures.guard_sample(raw, lambda row: make_samples(row, work.options))
