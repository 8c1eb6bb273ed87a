"""Turns image-text data into aspect buckets, every row once: as samples or as a rejection.

Left: WebDataset tars, tables, folders of pictures. Right: a samples dataset. A run that was killed
goes on where it was when the same command is given again; one that is finished does nothing. To run
it:

    sdxl prepare photos/ out/samples --preset tiny
"""

import contextlib
import dataclasses
import logging
import time
from collections import Counter

import numpy as np

from cluster.prepare_layout import make_layout
from cluster.prepare_passes import finish_parts, stage_parts
from cluster.prepare_state import PreparePlan, delete_staging, num_damaged, read_totals
from cluster.prepare_survey import count_all, sample_headers
from cluster.session import ray_session
from jobs.prepare_config import PrepareConfig, PrepareSummary
from jobs.prepare_options import find_sources, work_of
from jobs.prepare_preview import preview
from jobs.prepare_start import Start, dataset_info, is_finished, start
from jobs.registry import Plan
from sdxl_core.contract.config import refuse_mismatch, to_toml
from sdxl_core.contract.errors import JobError
from sdxl_core.storage.parts import (
    committed_parts,
    delete_summary,
    read_part_records,
    read_run_toml,
    read_summary,
    write_run_files,
    write_summary,
)
from sdxl_core.storage.sample_report import REPORT_PAGE, write_report
from sdxl_core.storage.staged_parts import STAGING_FOLDER, staging_store
from sdxl_core.storage.staging_layout import Layout, read_layout
from sdxl_core.storage.stores import Store, open_store
from sdxl_core.storage.thumbnails import first_samples, write_thumbnail_sheets

logger = logging.getLogger(__name__)

__all__ = ["PrepareConfig", "PrepareSummary", "plan", "run"]

# Rows that must be done before the share of damaged ones says anything.
MIN_ROWS_FOR_SHARE = 100


def run(config: PrepareConfig) -> PrepareSummary:
    """Makes all of ``config.out`` that is not there yet.

    Raises:
        ConfigError: settings that cannot be, or other settings than those ``out`` was begun with.
        SchemaError: a source cannot be used.
        JobError: the job had to stop; what is committed stays, and a rerun goes on from there.
    """
    started = time.monotonic()
    store = _open_output(config)
    if is_finished(config, store):
        return _say_finished(store)
    sources = find_sources(config)
    with ray_session(config.how.address, no_progress_timeout_s=config.how.no_progress_timeout_s):
        begun = start(config, store, sources)
        delete_summary(store)  # a part was taken out of a finished output, to be made anew
        layout = _stage(config, store, begun)
        write_run_files(store, to_toml(config), dataset_info(layout.num_groups))
        num_made = _finish(config, store, begun, layout)
    return close_run(config, store, begun.plan, num_made, time.monotonic() - started)


def plan(config: PrepareConfig) -> Plan:
    """Says what ``run`` would do: counts every row, looks at some headers, writes nothing."""
    store = _open_output(config)
    sources = find_sources(config)
    with ray_session(config.how.address, no_progress_timeout_s=config.how.no_progress_timeout_s):
        work = work_of(config, sources)
        counts = count_all(work)
        totals, share = sample_headers(work, counts, max_rows=config.how.plan_rows)
    logger.info("%s: nothing was written", store.url)
    return preview(
        sources,
        totals,
        num_rows=int(counts.sum()),
        share_seen=share,
        least_per_bucket=config.how.batch_size,
    )


def _open_output(config: PrepareConfig) -> Store:
    store = open_store(config.out, retries=config.how.retries, timeout_s=config.how.timeout_s)
    store.check()
    begun = read_run_toml(store)
    if begun is not None:
        refuse_mismatch(begun, config, out=config.out)
    return store


def _say_finished(store: Store) -> PrepareSummary:
    delete_staging(store)  # of a run that was killed just before it would have done so
    logger.info("%s: finished before, nothing to do", store.url)
    summary = read_summary(store) or {}
    return PrepareSummary(**summary | {"num_parts_made_now": 0, "rows_per_s": 0.0})


def _stage(config: PrepareConfig, store: Store, begun: Start) -> Layout:
    """Stages every slice that is not staged yet, then puts the staged pictures in order."""
    staging = staging_store(store)
    layout = read_layout(staging)
    if layout is not None:
        return layout
    done = sorted(committed_parts(staging))
    num_by_reason: Counter[str] = Counter()
    for record in read_part_records(staging, done):
        num_by_reason.update(record.num_by_reason)
    num_rows = int(begun.counts[done].sum())
    todo = np.setdiff1d(np.arange(len(begun.counts)), done).tolist()
    if todo:
        reports = stage_parts(begun.work, store, todo, begun.counts, size=config.how.tasks)
        with contextlib.closing(reports):
            for report in reports:
                num_rows += report["num_rows"]
                num_by_reason.update(report["num_by_reason"])
                _check_failed_share(config, num_rows, num_by_reason)
    return make_layout(
        begun.work,
        seed=config.seed,
        group_bytes=config.group_bytes,
        exact=not config.keep_exact_duplicates,
        near=config.near_duplicates,
    )


def _finish(config: PrepareConfig, store: Store, begun: Start, layout: Layout) -> int:
    """Writes every part that is not there yet; returns how many that were."""
    done = committed_parts(store)
    todo = [part for part in range(layout.num_groups) if part not in done]
    if not todo:
        return 0
    how = config.how
    reports = finish_parts(
        begun.work,
        store,
        todo,
        num_rows=begun.plan.num_rows * len(todo) // layout.num_groups,
        group_bytes=config.group_bytes,
        size=how.tasks if begun.encode is None else how.encoders,
        encode=begun.encode,
    )
    with contextlib.closing(reports):
        return sum(1 for _ in reports)


def _check_failed_share(config: PrepareConfig, num_rows: int, num_by_reason: Counter[str]) -> None:
    num_failed = num_damaged(num_by_reason)
    share = num_failed / max(1, num_rows)
    if num_rows >= MIN_ROWS_FOR_SHARE and share > config.how.max_failed_share:
        raise JobError(
            f"stopped: {num_failed} of {num_rows} rows are damaged ({share:.1%}), more than "
            f"how.max_failed_share={config.how.max_failed_share}. By reason: "
            f"{dict(num_by_reason)}. `detail` in {config.out}/{STAGING_FOLDER}/rejected says why. "
            "What is staged stays; raise the limit and run again, or mend the source and use "
            "another OUT"
        )


def close_run(
    config: PrepareConfig, store: Store, plan: PreparePlan, num_made: int, seconds: float
) -> PrepareSummary:
    """Adds everything up, writes report and summary, and deletes what was staged.

    Raises:
        JobError: the parts do not have as many rows as were counted.
    """
    totals = read_totals(store)
    if totals.num_source_rows != plan.num_rows:
        raise JobError(
            f"{config.out}: {totals.num_source_rows} rows are in the parts, but {plan.num_rows} "
            "were counted in the source; this must not be, please report it with _plan.json and "
            "the records in _parts"
        )
    sheets = write_thumbnail_sheets(store, first_samples(store))
    for warning in write_report(
        store, totals, least_per_bucket=config.how.batch_size, sheets=sheets
    ):
        logger.warning("%s", warning)
    summary = PrepareSummary(
        out=config.out,
        num_rows=totals.num_source_rows,
        num_samples=totals.num_samples,
        num_rejected=totals.num_rejected,
        num_failed=num_damaged(totals.num_by_reason),
        num_by_reason=totals.num_by_reason,
        num_buckets=len(totals.num_by_bucket),
        num_parts=len(committed_parts(store)),
        num_parts_made_now=num_made,
        seconds=round(seconds, 3),
        rows_per_s=round(totals.num_source_rows / seconds, 3),
        fingerprint=plan.fingerprint,
        report=store.join(REPORT_PAGE),
        model_digest=plan.identities.get("model", ""),
    )
    write_summary(store, dataclasses.asdict(summary))
    delete_staging(store)
    return summary
