"""The tasks of the survey: rows of some slices counted, or judged by their headers.

Alone in a module of its own, because Ray's workers import the module that a task is defined in.
"""

import itertools

from cluster import failures
from cluster.prepare_work import PrepareWork, slice_name
from sdxl_core.contract.errors import SchemaError, StoreError
from sdxl_core.contract.samples import RawSample, Rejection
from sdxl_core.data.header_survey import survey_rows
from sdxl_core.data.sample_maker import PlannedRow, plan_samples
from sdxl_core.storage.sample_totals import SampleTotals
from sdxl_core.storage.sources import count_slice, read_slice


def count_rows(work: PrepareWork, parts: list[int]) -> list[int]:
    """Rows of each of these slices, counted without their reader.

    Raises:
        StoreError, SchemaError: if a slice cannot be counted; the message names it.
    """
    counts = []
    for part in parts:
        piece = work.sources.slice(part)
        try:
            count = count_slice(piece, retries=work.retries, timeout_s=work.timeout_s)
        except StoreError as error:
            raise StoreError(
                f"{slice_name(piece)} cannot be counted: {error}", retryable=False
            ) from error
        except SchemaError as error:
            raise SchemaError(f"{slice_name(piece)} cannot be counted: {error}") from error
        counts.append(count.num_rows)
    return counts


def judge_headers(work: PrepareWork, parts: list[int], max_rows: int | None) -> list[SampleTotals]:
    """What the rows of each of these slices would become; of each the first ``max_rows`` only.

    Raises:
        StoreError, SchemaError: if a slice cannot be read; the message names it.
    """

    def judge(raw: RawSample) -> PlannedRow | Rejection:
        return failures.guard_sample(raw, lambda row: plan_samples(row, work.options))

    totals = []
    for part in parts:
        piece = work.sources.slice(part)
        rows = read_slice(piece, retries=work.retries, timeout_s=work.timeout_s)
        try:
            totals.append(survey_rows(itertools.islice(rows, max_rows), work.options, judge))
        except StoreError as error:
            raise StoreError(
                f"{slice_name(piece)} cannot be read: {error}", retryable=False
            ) from error
    return totals
