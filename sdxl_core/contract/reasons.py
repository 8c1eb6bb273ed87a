"""Why a row failed: a closed list.

The word is what the ``reason`` column holds and what counts are grouped by; the sentence is for
people. A new kind of failure gets a new word here, or it is ``internal_error``.
"""

from enum import StrEnum


class Reason(StrEnum):
    """One word of the ``reason`` column. ``explanation`` is its sentence."""

    INVALID_PROMPT = "invalid_prompt"
    PROMPT_MISSING = "prompt_missing"
    INVALID_ID = "invalid_id"
    DUPLICATE_ID = "duplicate_id"
    INVALID_SEED = "invalid_seed"
    INVALID_SIZE = "invalid_size"
    INVALID_STEPS = "invalid_steps"
    INVALID_GUIDANCE = "invalid_guidance"
    INVALID_SAMPLER = "invalid_sampler"
    INVALID_HANDOFF = "invalid_handoff"
    INVALID_VALUE = "invalid_value"
    TOKENIZER_FAILED = "tokenizer_failed"
    NON_FINITE_IMAGE = "non_finite_image"
    OUT_OF_MEMORY = "out_of_memory"
    WRITE_FAILED = "write_failed"
    UNREADABLE_ROW = "unreadable_row"
    INTERNAL_ERROR = "internal_error"

    @property
    def explanation(self) -> str:
        """One line for the person who looks at the failed rows."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    Reason.INVALID_PROMPT: "the prompt, or a negative prompt, is not text that can be used",
    Reason.PROMPT_MISSING: "the row has no prompt",
    Reason.INVALID_ID: "the id is empty or not usable as a name",
    Reason.DUPLICATE_ID: "an earlier row has the same id",
    Reason.INVALID_SEED: "the seed is not an integer from 0 to 2**63 - 1",
    Reason.INVALID_SIZE: "a height, width, crop, original or target size is out of range",
    Reason.INVALID_STEPS: "the number of steps is out of range",
    Reason.INVALID_GUIDANCE: "the guidance scale or its rescale is out of range",
    Reason.INVALID_SAMPLER: "there is no sampler of that name",
    Reason.INVALID_HANDOFF: "the hand-off or strength is out of range, or the run has no refiner",
    Reason.INVALID_VALUE: "a column holds a value of the wrong type",
    Reason.TOKENIZER_FAILED: "the tokenizer could not read the prompt",
    Reason.NON_FINITE_IMAGE: "the networks produced NaN or infinity",
    Reason.OUT_OF_MEMORY: "the device ran out of memory on this row alone",
    Reason.WRITE_FAILED: "the image could not be encoded or written",
    Reason.UNREADABLE_ROW: "the line of the input file could not be read as a row",
    Reason.INTERNAL_ERROR: "an unexpected error; the detail names it",
}
