"""From a row of a prompt table to a ``Request``: one image, with nothing left to a default."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sdxl_core.contract.cells import SAMPLERS
from sdxl_core.contract.errors import RowError, SchemaError
from sdxl_core.contract.prompt_fields import (
    PROMPT_COLUMNS,
    PROMPT_FIELDS,
    ColumnError,
    PromptField,
    is_null,
    read_value,
)
from sdxl_core.contract.reasons import Reason
from sdxl_core.contract.request import PromptDefaults, Request, default_of
from sdxl_core.contract.seeds import row_seed

__all__ = [
    "ALIASES",
    "ALIAS_OF",
    "PROMPT_COLUMNS",
    "SAMPLERS",
    "UNREADABLE_COLUMN",
    "PromptDefaults",
    "Request",
    "check_columns",
    "resolve_partly",
    "resolve_row",
]

# DiffusionDB's names, and ours.
ALIASES: Final = {"p": "prompt", "step": "steps", "cfg": "guidance_scale"}
ALIAS_OF: Final = {name: alias for alias, name in ALIASES.items()}

# What other tools call a prompt: not accepted, only suggested.
_LIKELY_NAMES = ("caption", "text", "prompts")

# Set by the reader of the table on a row that it could not read; holds the reader's message.
UNREADABLE_COLUMN = "_unreadable"

# A failed row of an earlier run has nulls where its input was refused. Read as input, it must not
# quietly get the defaults there, so these reasons stick until someone clears `status`.
_STICKY_REASONS = frozenset(
    {field.reason.value for field in PROMPT_FIELDS} | {Reason.PROMPT_MISSING, Reason.UNREADABLE_ROW}
)


def resolve_row(
    row: Mapping[str, Any],
    *,
    defaults: PromptDefaults,
    run_seed: int,
    index: int,
    has_refiner: bool = True,
) -> Request:
    """Turn one row of a prompt table into a ``Request``.

    Args:
        row: the cells by column name, typed (parquet, JSONL) or as text (CSV); other columns are
            ignored.
        defaults: what stands in for null cells and absent columns.
        run_seed: makes the seeds of the rows that bring none.
        index: the row's place in the whole input, from 0; the id of a row that brings none.
        has_refiner: whether the run has a refiner; without one, rows that ask for it are refused.

    Raises:
        RowError: the row cannot be used; the detail names the column, what it holds, and what it
            should hold.
    """
    _refuse_unreadable(row)
    values: dict[str, Any] = {}
    for field in PROMPT_FIELDS:
        raw = _cell(row, field.name)
        if is_null(field, raw):
            values[field.name] = _default(field, values, defaults, run_seed, index)
        else:
            values[field.name] = read_value(field, raw)
    request = Request(**values)
    if request.refiner and not has_refiner:
        raise ColumnError(
            Reason.INVALID_HANDOFF,
            "refiner",
            "true",
            "false, because the run has no refiner (--refiner)",
        )
    return request


def resolve_partly(
    row: Mapping[str, Any], *, defaults: PromptDefaults, run_seed: int, index: int
) -> dict[str, Any]:
    """Return the prompt columns of a row that ``resolve_row`` refused, null where unusable."""
    values: dict[str, Any] = dict.fromkeys(PROMPT_COLUMNS)
    if row.get(UNREADABLE_COLUMN) is not None:
        return values
    for field in PROMPT_FIELDS:
        raw = _cell(row, field.name)
        try:
            if not is_null(field, raw):
                values[field.name] = read_value(field, raw)
            elif field.name != "seed" or values["id"] is not None:
                values[field.name] = _default(field, values, defaults, run_seed, index)
        except RowError:
            values[field.name] = None
    return values


def check_columns(names: Sequence[str], *, file: str) -> None:
    """Refuse a table without a prompt column, or with one column under two names.

    Raises:
        SchemaError: names the file, what was found and what was expected.
    """
    for alias, name in ALIASES.items():
        if alias in names and name in names:
            raise SchemaError(
                f"{file}: columns '{alias}' and '{name}' mean the same; keep one and rename or "
                "drop the other"
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SchemaError(f"{file}: column names occur twice: {', '.join(twice)}")
    if "prompt" in names or "p" in names:
        return
    by_lower = {name.lower().strip(): name for name in names}
    close = [name for name in _LIKELY_NAMES if name in by_lower]
    close += difflib.get_close_matches("prompt", by_lower, n=1)
    hint = f" Rename '{by_lower[close[-1]]}' to 'prompt'?" if close else ""
    found = ", ".join(repr(name) for name in list(names)[:20]) or "none"
    raise SchemaError(
        f"{file}: no column 'prompt' (or 'p', as DiffusionDB calls it); found {found}.{hint}"
    )


def _cell(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None and name in ALIAS_OF:
        return row.get(ALIAS_OF[name])
    return value


def _default(
    field: PromptField,
    values: Mapping[str, Any],
    defaults: PromptDefaults,
    run_seed: int,
    index: int,
) -> Any:
    if field.name == "prompt":
        raise ColumnError(
            Reason.PROMPT_MISSING, "prompt", "nothing", "text (an empty text is allowed)"
        )
    if field.name == "id":
        return str(index)
    if field.name == "seed":
        return row_seed(run_seed, values["id"])
    return default_of(defaults, field.name)


def _refuse_unreadable(row: Mapping[str, Any]) -> None:
    unreadable = row.get(UNREADABLE_COLUMN)
    if unreadable is not None:
        raise RowError(Reason.UNREADABLE_ROW, str(unreadable))
    if row.get("status") == "failed" and row.get("reason") in _STICKY_REASONS:
        detail = str(row.get("detail") or "no detail was kept")
        earlier = "failed in an earlier run: "
        advice = " (correct the value and clear 'status' to try again)"
        if detail.startswith(earlier):
            raise RowError(str(row["reason"]), detail)
        raise RowError(str(row["reason"]), earlier + detail + advice)
