"""From a row of a prompt table to a ``Request``: one image, with nothing left to a default."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sdxl_core.contract.errors import ConfigError, RowError, SchemaError
from sdxl_core.contract.prompt_fields import (
    PROMPT_COLUMNS,
    PROMPT_FIELDS,
    SAMPLERS,
    ColumnError,
    PromptField,
    describe,
    is_null,
    read_value,
)
from sdxl_core.contract.reasons import Reason
from sdxl_core.contract.seeds import row_seed

__all__ = [
    "ALIASES",
    "PROMPT_COLUMNS",
    "SAMPLERS",
    "PromptDefaults",
    "Request",
    "check_columns",
    "resolve_partly",
    "resolve_row",
]

# DiffusionDB's names, and ours.
ALIASES: Final = {"p": "prompt", "step": "steps", "cfg": "guidance_scale"}

# Set by the reader of the table on a row that it could not read; holds the reader's message.
UNREADABLE_COLUMN = "_unreadable"

# A failed row of an earlier run has nulls where its input was refused. Read as input, it must not
# quietly get the defaults there, so these reasons stick until someone clears `status`.
_STICKY_REASONS = frozenset(
    {field.reason.value for field in PROMPT_FIELDS} | {Reason.PROMPT_MISSING, Reason.UNREADABLE_ROW}
)

# Stands where ``Request.__post_init__`` puts the image's own size: readers see plain integers.
_FROM_SIZE: Final[Any] = None

_FIELD_BY_NAME: Final = {field.name: field for field in PROMPT_FIELDS}
_NEGATIVE_SIZES = (
    "negative_original_height",
    "negative_original_width",
    "negative_target_height",
    "negative_target_width",
)
_NEGATIVE_CROPS = ("negative_crop_top", "negative_crop_left")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image to make. Every value is checked and resolved.

    Sizes and crops are pixels. The ``original``, ``crop`` and ``target`` values are SDXL's
    micro-conditioning; they do not change the size of the image. The ``negative_`` ones are those
    of the unconditional branch: all None (the same as the positive ones) or all set.

    Raises:
        RowError: a value has the wrong type or is out of range; the detail names the column.
    """

    prompt: str
    id: str = "0"
    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    seed: int = 0
    height: int = 1024
    width: int = 1024
    steps: int = 30
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    sampler: str = "euler"
    refiner: bool = False
    handoff: float = 0.8
    strength: float | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    original_height: int = _FROM_SIZE
    original_width: int = _FROM_SIZE
    crop_top: int = 0
    crop_left: int = 0
    target_height: int = _FROM_SIZE
    target_width: int = _FROM_SIZE
    negative_original_height: int | None = None
    negative_original_width: int | None = None
    negative_crop_top: int | None = None
    negative_crop_left: int | None = None
    negative_target_height: int | None = None
    negative_target_width: int | None = None

    def __post_init__(self) -> None:
        values = {name: getattr(self, name) for name in PROMPT_COLUMNS}
        for field in PROMPT_FIELDS:
            values[field.name] = _check_value(field, values[field.name])
        _fill_micro_conditioning(values)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def guided(self) -> bool:
        """Whether the unconditional branch runs too: above 1, as in diffusers."""
        return self.guidance_scale > 1.0


@dataclass(frozen=True, kw_only=True)
class PromptDefaults:
    """What a row gets in a column that the table lacks, or that is null in the row.

    Raises:
        ConfigError: a default is out of range.
    """

    prompt_2: str | None = None
    negative_prompt: str | None = None
    negative_prompt_2: str | None = None
    height: int = 1024
    width: int = 1024
    steps: int = 30
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    sampler: str = "euler"
    refiner: bool = False
    handoff: float = 0.8
    strength: float | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    original_height: int | None = None
    original_width: int | None = None
    crop_top: int = 0
    crop_left: int = 0
    target_height: int | None = None
    target_width: int | None = None
    negative_original_height: int | None = None
    negative_original_width: int | None = None
    negative_crop_top: int | None = None
    negative_crop_left: int | None = None
    negative_target_height: int | None = None
    negative_target_width: int | None = None

    def __post_init__(self) -> None:
        try:
            Request(prompt="", **asdict(self))
        except RowError as error:
            raise ConfigError(f"a default for the rows cannot be used: {error.detail}") from error


def resolve_row(
    row: Mapping[str, Any], *, defaults: PromptDefaults, run_seed: int, index: int
) -> Request:
    """Turn one row of a prompt table into a ``Request``.

    Args:
        row: the cells by column name, typed (parquet, JSONL) or as text (CSV); other columns are
            ignored.
        defaults: what stands in for null cells and absent columns.
        run_seed: makes the seeds of the rows that bring none.
        index: the row's place in the whole input, from 0; the id of a row that brings none.

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
    return Request(**values)


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
    wanted = [*difflib.get_close_matches("prompt", by_lower, n=2), *(set(_LIKELY) & set(by_lower))]
    hint = f" Rename '{by_lower[wanted[0]]}' to 'prompt'?" if wanted else ""
    found = ", ".join(repr(name) for name in list(names)[:20]) or "none"
    raise SchemaError(
        f"{file}: no column 'prompt' (or 'p', as DiffusionDB calls it). Found columns: {found}."
        + hint
    )


_LIKELY = ("caption", "text")


def _check_value(field: PromptField, value: Any) -> Any:
    if value is None and field.nullable:
        return None
    # Text stands for a number in a CSV file only; in a program it is a mistake.
    if value is None or (isinstance(value, str) and field.kind not in ("id", "text", "sampler")):
        raise ColumnError(field.reason, field.name, describe(value), field.expected)
    return read_value(field, value)


def _cell(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None and name in _ALIAS_OF:
        return row.get(_ALIAS_OF[name])
    return value


_ALIAS_OF: Final = {name: alias for alias, name in ALIASES.items()}


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
    return getattr(defaults, field.name)


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


def _fill_micro_conditioning(values: dict[str, Any]) -> None:
    """Resolve sizes and crops in place; half a size is refused."""
    for kind in ("original", "target"):
        height, width = f"{kind}_height", f"{kind}_width"
        if (values[height] is None) != (values[width] is None):
            missing = height if values[height] is None else width
            raise ColumnError(
                Reason.INVALID_SIZE, missing, "nothing", "a value beside its other half"
            )
        if values[height] is None:
            values[height], values[width] = values["height"], values["width"]
    for crop in ("crop_top", "crop_left"):
        values[crop] = values[crop] or 0
    missing_sizes = [name for name in _NEGATIVE_SIZES if values[name] is None]
    if not missing_sizes:
        for crop in _NEGATIVE_CROPS:
            values[crop] = values[crop] or 0
    elif len(missing_sizes) < len(_NEGATIVE_SIZES) or any(
        values[crop] is not None for crop in _NEGATIVE_CROPS
    ):
        expected = "all of the negative original and target sizes, or none of the negative ones"
        raise ColumnError(Reason.INVALID_SIZE, missing_sizes[0], "nothing", expected)
