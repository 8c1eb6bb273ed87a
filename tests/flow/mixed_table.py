"""A prompt table with a row of every kind: what can be made, and what cannot, with its reason."""

import json
from pathlib import Path
from typing import Any

from sdxl_core.contract.reasons import Reason

GOOD_ROWS: tuple[dict[str, Any], ...] = (
    {"id": "guided", "prompt": "a red cube", "negative_prompt": "blue"},
    {"id": "unguided", "prompt": "a red cube", "guidance_scale": 1.0},
    {"id": "refined", "prompt": "a green ball", "refiner": True},
    {"id": "img2img", "prompt": "a green ball", "refiner": True, "strength": 0.5, "steps": 4},
    {"id": "wide", "prompt": "two cones", "width": 128},
    {"id": "ü/λ ../..", "prompt": "猫とcafé 🐈 \u202e mirrored"},
    {"id": "heun", "prompt": "a cone", "sampler": "heun", "steps": 3},
    {"id": "ancestral", "prompt": "a cone", "sampler": "euler_ancestral", "seed": 7},
    {"id": "empty", "prompt": ""},
    {"id": "long", "prompt": "very " * 90 + "long"},
    {"prompt": "no id of its own"},
)
BAD_ROWS: tuple[tuple[Reason, str, dict[str, Any]], ...] = (
    (Reason.PROMPT_MISSING, "prompt", {"id": "b0", "prompt": None}),
    (Reason.INVALID_PROMPT, "prompt", {"id": "b1", "prompt": "nul \0 byte"}),
    (Reason.INVALID_PROMPT, "prompt", {"id": "b2", "prompt": "x" * 1_000_000}),
    (Reason.INVALID_PROMPT, "prompt_2", {"id": "b4", "prompt": "p", "prompt_2": "\x1b[31m red"}),
    (Reason.INVALID_SIZE, "height", {"id": "b5", "prompt": "p", "height": 100}),
    (Reason.INVALID_SIZE, "width", {"id": "b6", "prompt": "p", "width": 8192}),
    (Reason.INVALID_STEPS, "steps", {"id": "b7", "prompt": "p", "steps": 0}),
    (Reason.INVALID_STEPS, "steps", {"id": "b8", "prompt": "p", "steps": "many"}),
    (
        Reason.INVALID_GUIDANCE,
        "guidance_scale",
        {"id": "b9", "prompt": "p", "guidance_scale": "nan"},
    ),
    (Reason.INVALID_SAMPLER, "sampler", {"id": "b10", "prompt": "p", "sampler": "dpm_fast"}),
    (Reason.INVALID_SEED, "seed", {"id": "b11", "prompt": "p", "seed": -1}),
    (Reason.INVALID_HANDOFF, "handoff", {"id": "b12", "prompt": "p", "handoff": 0}),
    (Reason.INVALID_VALUE, "refiner", {"id": "b13", "prompt": "p", "refiner": "perhaps"}),
    (Reason.INVALID_ID, "id", {"id": "two\nlines", "prompt": "p"}),
    (Reason.DUPLICATE_ID, "id", {"id": "guided", "prompt": "again"}),
)
BROKEN_LINES = (
    '{"id": "surrogate", "prompt": "half a pair \\ud800"}\n',
    '{"id": "torn", "prompt": "a line that en\n',
)

NUM_GOOD, NUM_BAD = len(GOOD_ROWS), len(BAD_ROWS) + len(BROKEN_LINES)
NUM_ROWS = NUM_GOOD + NUM_BAD


def write_mixed_table(path: Path) -> str:
    """Good and bad rows in turn, then the broken lines; a column ``note`` that is nobody's."""
    bad = [row for _, _, row in BAD_ROWS]
    lines = []
    for index in range(max(len(bad), NUM_GOOD)):
        for rows in (GOOD_ROWS, bad):
            if index < len(rows):
                lines.append(json.dumps(dict(rows[index]) | {"note": f"n{len(lines)}"}) + "\n")
    path.write_text("".join([*lines, *BROKEN_LINES]))
    return str(path)
