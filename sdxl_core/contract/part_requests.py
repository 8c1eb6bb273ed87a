"""Resolve one part of a prompt table: requests to run, and the rows that failed before any work."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdxl_core.contract.columns import read_rows
from sdxl_core.contract.errors import RowError
from sdxl_core.contract.images import failed_row
from sdxl_core.contract.prompts import resolve_partly, resolve_row
from sdxl_core.contract.request import PromptDefaults, Request
from sdxl_core.contract.survey_totals import duplicate_error


@dataclass(frozen=True, kw_only=True)
class PartRequests:
    """Every row of a part, in one of the two.

    ``requests`` are (input row, request), ``failed`` are rows for ``images.results_table``.
    """

    requests: list[tuple[int, Request]]
    failed: list[dict[str, Any]]


def resolve_part(
    table: pa.Table,
    *,
    first_row: int,
    defaults: PromptDefaults,
    run_seed: int,
    duplicates: npt.NDArray[np.int64] | None = None,
    has_refiner: bool = True,
) -> PartRequests:
    """Resolve every row of one part.

    Args:
        table: the part as its reader gives it.
        first_row: place of its first row in the whole input, from 0.
        defaults: what stands in for nulls.
        run_seed: seed of the run.
        duplicates: the part's entry in ``Survey.duplicates``, if it has one.
        has_refiner: whether the run has a refiner.
    """
    first_by_row = {} if duplicates is None else dict(duplicates.tolist())
    requests: list[tuple[int, Request]] = []
    failed: list[dict[str, Any]] = []
    for row, cells in enumerate(read_rows(table), start=first_row):
        try:
            request = resolve_row(
                cells, defaults=defaults, run_seed=run_seed, index=row, has_refiner=has_refiner
            )
        except RowError as error:
            known = resolve_partly(cells, defaults=defaults, run_seed=run_seed, index=row)
            failed.append(failed_row(known, error, input_row=row))
            continue
        if row in first_by_row:
            failed.append(
                failed_row(request, duplicate_error(request.id, first_by_row[row]), input_row=row)
            )
        else:
            requests.append((row, request))
    return PartRequests(requests=requests, failed=failed)
