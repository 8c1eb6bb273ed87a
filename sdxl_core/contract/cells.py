"""What one cell stands for: the one Python value, or None where it is no value of that kind.

A parquet or JSONL reader gives typed cells, a CSV reader gives text, pandas gives integers beside
nulls as floats. "20" and 20.0 are the integer 20; "20.5", True and "1_000" are not.
"""

import math
import numbers
import re
import reprlib
from typing import Any

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

# Whole numbers up to here survive a detour through a float column (pandas, integers with nulls).
_MAX_EXACT_FLOAT = 2**53

_INTEGER_TEXT = re.compile(r"[+-]?[0-9]{1,19}(\.0*)?")
_NUMBER_TEXT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
# Prompts may hold tabs and line breaks. C1 controls stay allowed: wrongly decoded text is full of
# them, and tokenizers read them. Lone surrogates are not text: they have no UTF-8 form.
_NOT_PROMPT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_NOT_ID_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def describe(raw: Any) -> str:
    """Show a value in about 80 characters, with what was left out."""
    if isinstance(raw, str):
        bad = _NOT_PROMPT_TEXT.search(raw)
        shown = repr(raw[:60]) + ("…" if len(raw) > 60 else "")
        size = f" ({len(raw)} characters)" if len(raw) > 60 else ""
        where = f" (with {bad.group()!a} at position {bad.start()})" if bad else ""
        return shown + size + where
    return f"{reprlib.repr(raw)[:80]} ({type(raw).__name__})"


def read_integer(raw: Any) -> int | None:
    """A whole number; as text, decimal digits, with nothing but zeros after a point."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, str):
        text = raw.strip(" ")
        return int(text.partition(".")[0]) if _INTEGER_TEXT.fullmatch(text) else None
    if isinstance(raw, numbers.Integral):
        return int(raw)
    number = read_number(raw)
    if number is None or not number.is_integer() or abs(number) > _MAX_EXACT_FLOAT:
        return None
    return int(number)


def read_number(raw: Any) -> float | None:
    """A finite number; as text, in decimal or exponent notation."""
    if isinstance(raw, bool):
        return None
    try:
        if isinstance(raw, str):
            number = float(raw) if _NUMBER_TEXT.fullmatch(raw.strip(" ")) else math.nan
        else:
            number = float(raw) if isinstance(raw, numbers.Real) else math.nan
    except OverflowError:  # an integer beyond all floats
        return None
    return number if math.isfinite(number) else None


def read_boolean(raw: Any) -> bool | None:
    """True or false; as text in any case; also 1 and 0."""
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(raw.strip(" ").lower())
    number = read_integer(raw)
    return bool(number) if number in (0, 1) else None


def read_sampler(raw: Any) -> str | None:
    """A sampler's name here, also from DiffusionDB's name or code of it."""
    name = raw if isinstance(raw, str) else str(read_integer(raw))
    name = DIFFUSIONDB_SAMPLERS.get(name, name)
    return name if name in SAMPLERS else None


def read_text(raw: Any) -> str | None:
    """A prompt: any text that UTF-8 can hold, up to a length, without control characters."""
    if not isinstance(raw, str) or len(raw) > MAX_PROMPT_CHARACTERS:
        return None
    return None if _NOT_PROMPT_TEXT.search(raw) else raw


def read_id(raw: Any) -> str | None:
    """A row's name. The number 3.0 is "3" (pandas beside nulls); the text "3.0" stays as it is."""
    if not isinstance(raw, str):
        number = read_integer(raw)
        return None if number is None else str(number)
    if not 1 <= len(raw) <= MAX_ID_CHARACTERS or _NOT_ID_TEXT.search(raw):
        return None
    return raw


READERS = {
    "id": read_id,
    "text": read_text,
    "integer": read_integer,
    "number": read_number,
    "boolean": read_boolean,
    "sampler": read_sampler,
}
