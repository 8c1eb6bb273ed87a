"""The columns of a prompt table: type, range and reason of failure, in one list.

A value is read in two moves. ``read_value`` takes what a parquet, CSV or JSONL reader gives and
returns the one Python value that it stands for, or refuses it: "20" and 20.0 are the integer 20,
"20.5", True and "1_000" are not. Then the range is checked. Nothing is rounded, clipped or cut.
"""

import difflib
from dataclasses import dataclass
from typing import Any, Literal

from sdxl_core.contract.cells import (
    MAX_ID_CHARACTERS,
    MAX_PROMPT_CHARACTERS,
    READERS,
    SAMPLERS,
    describe,
)
from sdxl_core.contract.errors import RowError
from sdxl_core.contract.reasons import Reason
from sdxl_core.contract.seeds import MAX_SEED

MAX_SIDE_PX = 4096
MAX_CONDITIONING_PX = 16_384


class ColumnError(RowError):
    """A row cannot be used because of the value in ``column``."""

    def __init__(self, reason: str, column: str, found: str, expected: str) -> None:
        super().__init__(reason, f"column '{column}': found {found}; expected {expected}")
        self.column = column
        self._parts = (reason, column, found, expected)

    def __reduce__(self) -> tuple[type["ColumnError"], tuple[str, str, str, str]]:
        """Let the error travel between processes: BaseException would pass on the message alone."""
        return type(self), self._parts


@dataclass(frozen=True, kw_only=True)
class PromptField:
    """One column: what its values are, and the reason that a row with another value is given."""

    name: str
    kind: Literal["id", "text", "integer", "number", "boolean", "sampler"]
    reason: Reason
    nullable: bool = False
    low: float = 0.0
    high: float = 0.0
    above_low: bool = False
    multiple_of: int = 1

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.kind == "id":
            return f"text of 1 to {MAX_ID_CHARACTERS} characters without line breaks, or an integer"
        if self.kind == "text":
            return f"text of at most {MAX_PROMPT_CHARACTERS} characters without control characters"
        if self.kind == "boolean":
            return "true or false"
        if self.kind == "sampler":
            return f"one of {', '.join(SAMPLERS)}"
        start = f"above {self.low:g} and up to" if self.above_low else f"from {self.low:g} to"
        noun = "an integer" if self.kind == "integer" else "a finite number"
        high = "2**63 - 1" if self.high >= MAX_SEED else f"{self.high:g}"
        multiple = f", a multiple of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"{noun} {start} {high}{multiple}"


def _size(name: str) -> PromptField:
    return PromptField(
        name=name,
        kind="integer",
        reason=Reason.INVALID_SIZE,
        low=64,
        high=MAX_SIDE_PX,
        multiple_of=8,
    )


def _conditioning(name: str) -> PromptField:
    return PromptField(
        name=name,
        kind="integer",
        reason=Reason.INVALID_SIZE,
        nullable=True,
        high=MAX_CONDITIONING_PX,
    )


def _text(name: str, *, nullable: bool = True) -> PromptField:
    return PromptField(name=name, kind="text", reason=Reason.INVALID_PROMPT, nullable=nullable)


def _number(
    name: str, reason: Reason, high: float, *, above_low: bool = False, nullable: bool = False
) -> PromptField:
    return PromptField(
        name=name,
        kind="number",
        reason=reason,
        high=high,
        above_low=above_low,
        nullable=nullable,
    )


PROMPT_FIELDS = (
    PromptField(name="id", kind="id", reason=Reason.INVALID_ID),
    _text("prompt", nullable=False),
    _text("prompt_2"),
    _text("negative_prompt"),
    _text("negative_prompt_2"),
    PromptField(name="seed", kind="integer", reason=Reason.INVALID_SEED, high=MAX_SEED),
    _size("height"),
    _size("width"),
    PromptField(name="steps", kind="integer", reason=Reason.INVALID_STEPS, low=1, high=1000),
    _number("guidance_scale", Reason.INVALID_GUIDANCE, 100.0),
    _number("guidance_rescale", Reason.INVALID_GUIDANCE, 1.0),
    PromptField(name="sampler", kind="sampler", reason=Reason.INVALID_SAMPLER),
    PromptField(name="refiner", kind="boolean", reason=Reason.INVALID_VALUE),
    _number("handoff", Reason.INVALID_HANDOFF, 1.0, above_low=True),
    _number("strength", Reason.INVALID_HANDOFF, 1.0, above_low=True, nullable=True),
    _number("aesthetic_score", Reason.INVALID_VALUE, 10.0),
    _number("negative_aesthetic_score", Reason.INVALID_VALUE, 10.0),
    _conditioning("original_height"),
    _conditioning("original_width"),
    _conditioning("crop_top"),
    _conditioning("crop_left"),
    _conditioning("target_height"),
    _conditioning("target_width"),
    _conditioning("negative_original_height"),
    _conditioning("negative_original_width"),
    _conditioning("negative_crop_top"),
    _conditioning("negative_crop_left"),
    _conditioning("negative_target_height"),
    _conditioning("negative_target_width"),
)
PROMPT_COLUMNS = tuple(field.name for field in PROMPT_FIELDS)


def read_value(field: PromptField, raw: Any) -> Any:
    """Return the value that a non-null ``raw`` stands for in this column.

    Raises:
        ColumnError: ``raw`` has the wrong type or is out of range.
    """
    value = READERS[field.kind](raw)
    if value is None or (field.kind in ("integer", "number") and not _in_range(field, value)):
        raise refusal(field, raw)
    return value


def refusal(field: PromptField, raw: Any) -> ColumnError:
    """Why a row with the cell ``raw`` in this column cannot be used."""
    expected = field.expected
    if field.kind == "sampler" and isinstance(raw, str):
        close = difflib.get_close_matches(raw[:60].lower(), SAMPLERS, n=1)
        expected += f" (did you mean '{close[0]}'?)" if close else ""
    return ColumnError(field.reason, field.name, describe(raw), expected)


def is_null(field: PromptField, raw: Any) -> bool:
    """Tell if the cell is empty. An empty text is a text; in any other column "" is a null."""
    return raw is None or (raw == "" and field.kind not in ("text", "id"))


def _in_range(field: PromptField, value: Any) -> bool:
    if not field.low <= value <= field.high or (field.above_low and value == field.low):
        return False
    return field.multiple_of == 1 or value % field.multiple_of == 0
