"""The columns of a prompt table: type, range and reason of failure, in one list.

A value is read in two moves. ``read_value`` takes what a parquet, CSV or JSONL reader gives and
returns the one Python value that it stands for, or refuses it: "20" and 20.0 are the integer 20,
"20.5", True and "1_000" are not. Then the range is checked. Nothing is rounded, clipped or cut.
"""

import difflib
import math
import numbers
import re
import reprlib
from dataclasses import dataclass
from typing import Any, Literal

from sdxl_core.contract.errors import RowError
from sdxl_core.contract.reasons import Reason

SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_karras", "ddim")

# DiffusionDB writes samplers as its own names (JSON) or codes (parquet). Codes 2, 6, 7, 8 and 9
# (plms, k_dpm_2, k_dpm_2_ancestral, k_lms, others) have no counterpart here and are refused.
DIFFUSIONDB_SAMPLERS = {
    "k_euler": "euler",
    "k_euler_ancestral": "euler_ancestral",
    "k_heun": "heun",
    "1": "ddim",
    "3": "euler",
    "4": "euler_ancestral",
    "5": "heun",
}

MAX_PROMPT_CHARACTERS = 100_000
MAX_ID_CHARACTERS = 200
MAX_SIDE_PX = 4096
MAX_CONDITIONING_PX = 16_384
MAX_SEED = 2**63 - 1

# Whole numbers up to here survive a detour through a float column (pandas, integers with nulls).
_MAX_EXACT_FLOAT = 2**53

_INTEGER_TEXT = re.compile(r"[+-]?[0-9]{1,19}(\.0*)?")
_NUMBER_TEXT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
# Prompts may hold tabs and line breaks. C1 controls stay allowed: wrongly decoded text is full of
# them, and tokenizers read them. Lone surrogates are not text: they have no UTF-8 form.
_NOT_PROMPT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_NOT_ID_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


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
    value = _READERS[field.kind](raw)
    if value is None or (field.kind in ("integer", "number") and not _in_range(field, value)):
        raise ColumnError(field.reason, field.name, describe(raw), _expected_instead(field, raw))
    return value


def describe(raw: Any) -> str:
    """Show a value in about 80 characters, with what was left out."""
    if isinstance(raw, str):
        bad = _NOT_PROMPT_TEXT.search(raw)
        shown = repr(raw[:60]) + ("…" if len(raw) > 60 else "")
        size = f" ({len(raw)} characters)" if len(raw) > 60 else ""
        where = f" (with {bad.group()!a} at position {bad.start()})" if bad else ""
        return shown + size + where
    return f"{reprlib.repr(raw)[:80]} ({type(raw).__name__})"


def is_null(field: PromptField, raw: Any) -> bool:
    """Tell if the cell is empty. An empty text is a text; in any other column "" is a null."""
    return raw is None or (raw == "" and field.kind not in ("text", "id"))


def _in_range(field: PromptField, value: float) -> bool:
    if not field.low <= value <= field.high or (field.above_low and value == field.low):
        return False
    return field.multiple_of == 1 or value % field.multiple_of == 0


def _expected_instead(field: PromptField, raw: Any) -> str:
    if field.kind == "sampler" and isinstance(raw, str):
        close = difflib.get_close_matches(raw[:60].lower(), SAMPLERS, n=1)
        return field.expected + (f" (did you mean '{close[0]}'?)" if close else "")
    return field.expected


def _read_integer(raw: Any) -> int | None:
    if isinstance(raw, bool):
        return None
    if isinstance(raw, str):
        text = raw.strip(" ")
        return int(text.partition(".")[0]) if _INTEGER_TEXT.fullmatch(text) else None
    if isinstance(raw, numbers.Integral):
        return int(raw)
    if isinstance(raw, numbers.Real) and abs(float(raw)) <= _MAX_EXACT_FLOAT:
        return int(raw) if float(raw).is_integer() else None
    return None


def _read_number(raw: Any) -> float | None:
    if isinstance(raw, bool):
        return None
    if isinstance(raw, str):
        text = raw.strip(" ")
        return float(text) if _NUMBER_TEXT.fullmatch(text) else None
    if isinstance(raw, numbers.Real):
        return float(raw) if math.isfinite(raw) else None
    return None


def _read_boolean(raw: Any) -> bool | None:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(raw.strip(" ").lower())
    number = _read_integer(raw)
    return bool(number) if number in (0, 1) else None


def _read_sampler(raw: Any) -> str | None:
    name = raw if isinstance(raw, str) else str(_read_integer(raw))
    name = DIFFUSIONDB_SAMPLERS.get(name, name)
    return name if name in SAMPLERS else None


def _read_text(raw: Any) -> str | None:
    if not isinstance(raw, str) or len(raw) > MAX_PROMPT_CHARACTERS:
        return None
    return None if _NOT_PROMPT_TEXT.search(raw) else raw


def _read_id(raw: Any) -> str | None:
    if not isinstance(raw, str):
        number = _read_integer(raw)
        return None if number is None else str(number)
    if not 1 <= len(raw) <= MAX_ID_CHARACTERS or _NOT_ID_TEXT.search(raw):
        return None
    return raw


_READERS = {
    "id": _read_id,
    "text": _read_text,
    "integer": _read_integer,
    "number": _read_number,
    "boolean": _read_boolean,
    "sampler": _read_sampler,
}
