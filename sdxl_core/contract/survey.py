"""Look at every row of a prompt table before any work: is it valid, what does it ask for.

``survey_part`` runs anywhere on one part, ``merge_surveys`` adds the results up. Both are pure.
Columns are checked whole; only the rows that some column refuses, or that need a rule across
columns, are read one by one with ``resolve_row``, whose word is final.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdxl_core.contract.columns import (
    CheckedColumn,
    check_column,
    find_column,
    read_cells,
    read_rows,
)
from sdxl_core.contract.errors import RowError
from sdxl_core.contract.prompt_fields import PROMPT_FIELDS, ColumnError
from sdxl_core.contract.prompts import UNREADABLE_COLUMN, resolve_row
from sdxl_core.contract.request import (
    NEGATIVE_CROPS,
    NEGATIVE_SIZES,
    PromptDefaults,
    default_of,
)

MAX_EXAMPLES = 3

# The id of a row as 128 bits: no two different ids of any real table share them.
ID_CLAIM = np.dtype([("row", np.int64), ("high", np.uint64), ("low", np.uint64)])

_WORK_KEYS = ["height", "width", "guided", "refiner"]
_WORK_SUMS = ["num_rows", "num_base_evaluations", "num_refiner_evaluations"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row that cannot be used. ``row`` counts from 0 within ``file``; ``column`` may be ""."""

    file: str
    row: int
    column: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class PartSurvey:
    """What one part holds. About 25 bytes a row, for Ray's object store.

    ``work`` is a table of ``height, width, guided, refiner`` and, for the valid rows of each
    group, ``num_rows, num_base_evaluations, num_refiner_evaluations``. ``prompt_hashes`` (uint64)
    are those of the distinct prompts of valid rows. ``id_claims`` (``ID_CLAIM``) holds every row
    with a usable id, valid or not, in order. Rows count from 0 over the whole input.
    """

    part: int
    first_row: int
    num_rows: int
    num_invalid_by_reason: dict[str, int]
    examples: tuple[Example, ...]
    invalid_rows: npt.NDArray[np.int64]
    work: pa.Table
    prompt_hashes: npt.NDArray[np.uint64]
    id_claims: npt.NDArray[Any]
    file: str = ""
    first_row_in_file: int = 0


def survey_part(
    table: pa.Table,
    *,
    first_row: int,
    defaults: PromptDefaults,
    run_seed: int,
    part: int = 0,
    file: str = "",
    first_row_in_file: int | None = None,
    has_refiner: bool = True,
) -> PartSurvey:
    """Check every row of one part. No content of a row makes this fail.

    Args:
        table: the part as its reader gives it; ``check_columns`` has accepted its names.
        first_row: place of the part's first row in the whole input, from 0.
        defaults: what stands in for nulls.
        run_seed: seed of the run.
        part: number of the part.
        file: name of its file, for examples.
        first_row_in_file: place of the part's first row in that file; ``first_row`` if None.
        has_refiner: whether the run has a refiner.
    """
    start = first_row if first_row_in_file is None else first_row_in_file
    columns = {
        field.name: check_column(field, table, default_of(defaults, field.name))
        for field in PROMPT_FIELDS
    }
    suspects = np.flatnonzero(_suspects_N(table, columns, has_refiner=has_refiner))
    valid_N = np.ones(table.num_rows, dtype=bool)
    counts: Counter[str] = Counter()
    examples: list[Example] = []
    for row, cells in zip(suspects.tolist(), read_rows(table.take(suspects)), strict=True):
        try:
            resolve_row(
                cells,
                defaults=defaults,
                run_seed=run_seed,
                index=first_row + row,
                has_refiner=has_refiner,
            )
        except RowError as error:
            valid_N[row] = False
            counts[str(error.reason)] += 1
            if counts[str(error.reason)] <= MAX_EXAMPLES:
                examples.append(_example(error, file, start + row))
    return PartSurvey(
        part=part,
        first_row=first_row,
        num_rows=table.num_rows,
        num_invalid_by_reason=dict(counts),
        examples=tuple(examples),
        invalid_rows=np.flatnonzero(~valid_N) + first_row,
        work=_work(columns, valid_N),
        prompt_hashes=_prompt_hashes(columns["prompt"], valid_N),
        id_claims=_id_claims(table, columns["id"], first_row),
        file=file,
        first_row_in_file=start,
    )


def sum_work(tables: list[pa.Table]) -> pa.Table:
    """Add up tables of work, sorted by height, width, guided, refiner."""
    grouped = pa.concat_tables(tables).group_by(_WORK_KEYS)
    summed = grouped.aggregate([(name, "sum") for name in _WORK_SUMS])
    ordered = summed.select([*_WORK_KEYS, *(f"{name}_sum" for name in _WORK_SUMS)])
    return ordered.rename_columns([*_WORK_KEYS, *_WORK_SUMS]).sort_by(
        [(key, "ascending") for key in _WORK_KEYS]
    )


def _suspects_N(
    table: pa.Table, columns: dict[str, CheckedColumn], *, has_refiner: bool
) -> npt.NDArray[np.bool_]:
    """Rows that the whole-column checks cannot clear."""
    suspects_N = columns["prompt"].missing_N.copy()
    if not has_refiner:
        suspects_N |= columns["refiner"].values_N(np.bool_)
    for column in columns.values():
        suspects_N |= column.refused_N
    for kind in ("original", "target"):
        suspects_N |= columns[f"{kind}_height"].missing_N ^ columns[f"{kind}_width"].missing_N
    num_sizes_N = sum(~columns[name].missing_N for name in NEGATIVE_SIZES)
    any_crop_N = ~(columns[NEGATIVE_CROPS[0]].missing_N & columns[NEGATIVE_CROPS[1]].missing_N)
    suspects_N |= (num_sizes_N > 0) & (num_sizes_N < len(NEGATIVE_SIZES))
    suspects_N |= any_crop_N & (num_sizes_N == 0)
    for name, ordinary in ((UNREADABLE_COLUMN, None), ("status", "ok")):
        cells = find_column(table, name)
        if cells is not None:
            suspects_N |= np.array([c not in (None, ordinary) for c in read_cells(cells)], bool)
    return suspects_N


def _work(columns: dict[str, CheckedColumn], valid_N: npt.NDArray[np.bool_]) -> pa.Table:
    """UNet evaluations by shape, estimated: a hand-off between two steps may differ by one step."""
    steps_N = columns["steps"].values_N(np.int64)
    heun_N = columns["sampler"].values_N(np.str_) == "heun"
    refiner_N = columns["refiner"].values_N(np.bool_)
    strength_N = columns["strength"].values_N(np.float64, none=np.nan)
    handoff_N = columns["handoff"].values_N(np.float64)
    ensemble_N = refiner_N & np.isnan(strength_N)
    base_steps_N = np.where(ensemble_N, np.rint(steps_N * handoff_N), steps_N)
    refiner_steps_N = np.where(ensemble_N, steps_N - base_steps_N, np.floor(steps_N * strength_N))
    refiner_steps_N = np.where(refiner_N, refiner_steps_N, 0)
    per_step_N = np.where(heun_N, 2, 1)  # Heun evaluates the network twice in a step
    guidance_N = columns["guidance_scale"].values_N(np.float64)
    work = {
        "height": columns["height"].values_N(np.int64),
        "width": columns["width"].values_N(np.int64),
        "guided": guidance_N > 1.0,
        "refiner": refiner_N,
        "num_rows": np.ones_like(steps_N),
        "num_base_evaluations": (base_steps_N * per_step_N).astype(np.int64),
        "num_refiner_evaluations": (refiner_steps_N * per_step_N).astype(np.int64),
    }
    return sum_work([pa.table({name: values_N[valid_N] for name, values_N in work.items()})])


def _prompt_hashes(prompt: CheckedColumn, valid_N: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    used = np.unique(prompt.codes_N[valid_N])
    digests = [_digest(prompt.distinct[code], num_bytes=8) for code in used.tolist()]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def _id_claims(table: pa.Table, ids: CheckedColumn, first_row: int) -> npt.NDArray[Any]:
    claims_N = ~ids.refused_N
    unreadable = find_column(table, UNREADABLE_COLUMN)
    if unreadable is not None:
        claims_N &= ~unreadable.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(claims_N)
    texts = [
        str(first_row + row) if ids.distinct[code] is None else ids.distinct[code]
        for row, code in zip(rows.tolist(), ids.codes_N[rows].tolist(), strict=True)
    ]
    digests = b"".join(_digest(text, num_bytes=16) for text in texts)
    halves = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
    id_claims = np.empty(len(rows), dtype=ID_CLAIM)
    id_claims["row"] = rows + first_row
    id_claims["high"], id_claims["low"] = halves[:, 0], halves[:, 1]
    return id_claims


def _digest(text: str, *, num_bytes: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=num_bytes).digest()


def _example(error: RowError, file: str, row: int) -> Example:
    column = error.column if isinstance(error, ColumnError) else ""
    return Example(file=file, row=row, column=column, reason=str(error.reason), detail=error.detail)
