"""A run of prepare in this process, put together from the product's parts without Ray."""

from collections.abc import Callable

import numpy as np

from cluster.prepare_count import count_rows
from cluster.prepare_finish import make_part
from cluster.prepare_layout import lay_out
from cluster.prepare_stage import stage_part
from cluster.prepare_state import (
    PreparePlan,
    read_counts,
    read_plan,
    refuse_other_inputs,
    write_plan,
)
from jobs.prepare import close_run, run
from jobs.prepare_config import PrepareConfig, PrepareSummary
from jobs.prepare_options import find_sources, work_of
from jobs.prepare_start import dataset_info, is_finished
from sdxl_core.contract.config import to_toml
from sdxl_core.contract.errors import JobError
from sdxl_core.storage.parts import committed_parts, write_run_files
from sdxl_core.storage.staged_parts import staging_store
from sdxl_core.storage.staging_layout import read_layout
from sdxl_core.storage.stores import open_store


def prepare_here(
    config: PrepareConfig, *, once_counted: Callable[[], object] = lambda: None
) -> PrepareSummary:
    """Makes all of ``config.out`` that is not there yet.

    Args:
        config: Without latents.
        once_counted: Called between counting and reading.

    Raises:
        JobError: with the message that stops the job.
    """
    if is_finished(config, open_store(config.out)):
        return run(config)  # does nothing that needs Ray
    work = work_of(config, find_sources(config))
    store, staging = work.open_output(), staging_store(work.open_output())
    identities = {"sources": work.sources.digest}
    write_run_files(store, to_toml(config), dataset_info(None))
    plan, counts = read_plan(store), read_counts(store)
    if plan is None:
        counts = np.array(count_rows(work, list(range(work.sources.num_slices))))
        plan = PreparePlan(
            fingerprint="", identities=identities, num_rows=int(counts.sum()),
            num_slices=len(counts), merged={}, sources=[],
        )  # fmt: skip
        write_plan(store, plan, counts)
    refuse_other_inputs(plan, identities, config.out)
    assert counts is not None
    once_counted()
    for part in sorted(set(range(len(counts))) - committed_parts(staging)):
        _check(stage_part(work, part, int(counts[part]), attempt=1))
    if read_layout(staging) is None:
        lay_out(
            staging, seed=config.seed, group_bytes=config.group_bytes,
            exact=not config.keep_exact_duplicates, near=config.near_duplicates,
        )  # fmt: skip
    layout = read_layout(staging)
    assert layout is not None
    write_run_files(store, to_toml(config), dataset_info(layout.num_groups))
    todo = sorted(set(range(layout.num_groups)) - committed_parts(store))
    for part in todo:
        _check(make_part(work, part, attempt=1))
    return close_run(config, store, plan, len(todo), 1.0)


def _check(made: object) -> None:
    if isinstance(made, str):
        raise JobError(made)
