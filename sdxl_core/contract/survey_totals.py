"""Add up the surveys of all parts, and find the ids that occur twice across them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdxl_core.contract.errors import RowError
from sdxl_core.contract.prompt_fields import ColumnError
from sdxl_core.contract.reasons import Reason
from sdxl_core.contract.survey import ID_CLAIM, MAX_EXAMPLES, Example, PartSurvey, sum_work

_NO_ROWS = np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the valid rows of one shape ask for.

    An evaluation is one row through one UNet once, or twice if ``guided`` (both branches).
    """

    height: int
    width: int
    guided: bool
    refiner: bool
    num_rows: int
    num_base_evaluations: int
    num_refiner_evaluations: int


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the whole input holds.

    ``duplicates`` maps a part to the rows in it that fail because an earlier row has their id, as
    an int64 array (num_duplicates, 2) of (row, first row with that id), counted over the whole
    input. ``work`` is sorted by shape and still includes those rows.
    """

    num_rows: int
    num_invalid_by_reason: Mapping[str, int]
    examples: tuple[Example, ...]
    work: tuple[Work, ...]
    num_distinct_prompts: int
    duplicates: Mapping[int, npt.NDArray[np.int64]]

    @property
    def num_invalid(self) -> int:
        """Rows that will fail without being tried."""
        return sum(self.num_invalid_by_reason.values())

    def to_json(self) -> dict[str, Any]:
        """Everything but the list of duplicates, in plain types."""
        return {
            "num_rows": self.num_rows,
            "num_invalid": self.num_invalid,
            "num_invalid_by_reason": dict(self.num_invalid_by_reason),
            "num_distinct_prompts": self.num_distinct_prompts,
            "examples": [asdict(example) for example in self.examples],
            "work": [asdict(work) for work in self.work],
        }


def merge_surveys(parts: Sequence[PartSurvey]) -> Survey:
    """Add up the surveys of all parts of one input, given in any order."""
    parts = sorted(parts, key=lambda part: part.first_row)
    duplicates = duplicate_rows(parts)
    counts: dict[str, int] = {}
    for part in parts:
        for reason, count in part.num_invalid_by_reason.items():
            counts[reason] = counts.get(reason, 0) + count
    num_duplicates = sum(len(pairs) for pairs in duplicates.values())
    if num_duplicates:
        counts[Reason.DUPLICATE_ID.value] = (
            counts.get(Reason.DUPLICATE_ID.value, 0) + num_duplicates
        )
    prompts = [part.prompt_hashes for part in parts]
    return Survey(
        num_rows=sum(part.num_rows for part in parts),
        num_invalid_by_reason=dict(sorted(counts.items())),
        examples=_first_examples(parts, duplicates),
        work=tuple(Work(**row) for row in sum_work([part.work for part in parts]).to_pylist())
        if parts
        else (),
        num_distinct_prompts=len(np.unique(np.concatenate(prompts))) if prompts else 0,
        duplicates=duplicates,
    )


def duplicate_rows(parts: Iterable[PartSurvey]) -> dict[int, npt.NDArray[np.int64]]:
    """Find the otherwise valid rows whose id an earlier row has; see ``Survey.duplicates``.

    The row with the lowest number keeps the id, even if it fails for a reason of its own: which
    row fails depends on the input alone, and never on the defaults of a run.
    """
    parts = sorted(parts, key=lambda part: part.first_row)
    if not parts:
        return {}
    pairs = repeated_claims(np.concatenate([part.id_claims for part in parts]))
    invalid = np.concatenate([part.invalid_rows for part in parts])
    pairs = pairs[~np.isin(pairs[:, 0], invalid)]
    starts = np.array([part.first_row for part in parts])
    owners = np.searchsorted(starts, pairs[:, 0], side="right") - 1
    return {parts[owner].part: pairs[owners == owner] for owner in np.unique(owners).tolist()}


def duplicate_error(row_id: str, first_row: int) -> RowError:
    """The failure of a row whose id the row ``first_row`` (from 0, over the whole input) has."""
    found = f"{row_id!r}, which row {first_row} of the input (counted from 0) has too"
    return ColumnError(Reason.DUPLICATE_ID, "id", found, "an id that no earlier row has")


def repeated_claims(claims: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return int64 (num_repeats, 2): row and first row of every claim but the first on an id."""
    # Half of the hash decides almost everything; the few that share it are sorted in full.
    high = np.sort(claims["high"])
    shared = np.unique(high[1:][high[1:] == high[:-1]])
    few = claims[np.isin(claims["high"], shared)] if len(shared) else np.empty(0, ID_CLAIM)
    few = few[np.lexsort((few["row"], few["low"], few["high"]))]
    starts_run = np.ones(len(few), dtype=bool)
    starts_run[1:] = (few["high"][1:] != few["high"][:-1]) | (few["low"][1:] != few["low"][:-1])
    first_rows = few["row"][np.maximum.accumulate(np.where(starts_run, np.arange(len(few)), 0))]
    pairs = np.stack([few["row"], first_rows], axis=1)[~starts_run]
    return pairs[np.argsort(pairs[:, 0])]


def _duplicate_example(part: PartSurvey, row: int, first_row: int) -> Example:
    return Example(
        file=part.file,
        row=row - part.first_row + part.first_row_in_file,
        column="id",
        reason=Reason.DUPLICATE_ID.value,
        detail=f"row {first_row} of the input (counted from 0) has the same id",
    )


def _first_examples(
    parts: Sequence[PartSurvey], duplicates: Mapping[int, npt.NDArray[np.int64]]
) -> tuple[Example, ...]:
    """Up to three examples of each reason, in the order of the input."""
    kept: dict[str, list[Example]] = {}
    for part in parts:
        found = list(part.examples)
        for row, first_row in duplicates.get(part.part, _NO_ROWS)[:MAX_EXAMPLES].tolist():
            found.append(_duplicate_example(part, row, first_row))
        for example in found:
            examples = kept.setdefault(example.reason, [])
            if len(examples) < MAX_EXAMPLES:
                examples.append(example)
    return tuple(example for reason in sorted(kept) for example in kept[reason])
