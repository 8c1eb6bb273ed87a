"""One group of staged units becomes one part of the samples dataset."""

import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from cluster import failures
from cluster.prepare_work import PrepareWork
from cluster.reporter import Reporter
from cluster.reports import fatal_report, report
from sdxl_core.storage.finished_parts import EncodeBucket, finish_group
from sdxl_core.storage.parts import PartRecord, commit_part
from sdxl_core.storage.staged_parts import staging_store
from sdxl_core.storage.staging_layout import read_layout


def finish_part(
    block: pa.Table,
    work: PrepareWork,
    hub: Any,
    encode: EncodeBucket | None = None,
    *,
    describe: Callable[[], str] = str,
) -> pa.Table:
    """Writes and commits the part ``part`` of the block.

    Args:
        block: One row.
        work: The run; the layout is written.
        hub: Telemetry hub.
        encode: Turns pictures into moments; None keeps pictures.
        describe: What to tell of the work once it is done, in the detail of its event.

    Returns:
        A report: source rows.
    """
    part = block["part"][0].as_py()
    reporter = Reporter(hub, "finish")
    started = time.perf_counter()
    made = make_part(work, part, encode, attempt=reporter.begin(part))
    if isinstance(made, str):
        return fatal_report(part, made)
    num_rows = made.extra["num_source_rows"]
    seconds = time.perf_counter() - started
    reporter.end(part, ("finish", num_rows, seconds), detail=describe())
    return report(part, {"num_rows": num_rows})


def make_part(
    work: PrepareWork, part: int, encode: EncodeBucket | None = None, *, attempt: int
) -> PartRecord | str:
    """Writes and commits one part.

    Args:
        work: The run; the layout is written.
        part: Which one.
        encode: Turns pictures into moments; None keeps pictures.
        attempt: How often this was begun, this time included.

    Returns:
        The record, or the message that stops the job.
    """
    return failures.guard_part(
        lambda: _finish(work, part, encode),
        what=f"part {part} of {work.out}",
        attempt=attempt,
        max_attempts=work.max_attempts,
    )


def _finish(work: PrepareWork, part: int, encode: EncodeBucket | None) -> PartRecord:
    store = work.open_output()
    staging = staging_store(store)
    layout = read_layout(staging)
    assert layout is not None
    record = finish_group(
        store, staging, layout, part, output_format=work.output_format, encode=encode
    )
    commit_part(store, record)
    return record
