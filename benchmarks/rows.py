"""The rows that are made, the same for every side: one kind of row, or many kinds mixed."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.contract.request import Request

# Shapes of the embedded model's training, (height_px, width_px): eight of SDXL's, divided by 8.
SIZES = (
    (128, 128),
    (144, 112),
    (112, 144),
    (152, 104),
    (104, 152),
    (160, 96),
    (96, 160),
    (88, 168),
)
STEPS = (6, 8, 10, 12)
GUIDANCE_SCALES = (3.0, 5.0, 7.5)
HANDOFF = 0.8

_COLORS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
_SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")


def homogeneous_rows(
    num_rows: int, *, steps: int = 20, size_px: tuple[int, int] = (128, 128)
) -> list[Request]:
    """Rows that differ in prompt and seed alone."""
    return [
        _request(index, size_px=size_px, steps=steps, guidance_scale=5.0, refiner=False)
        for index in range(num_rows)
    ]


def mixed_rows(num_rows: int) -> list[Request]:
    """Rows over 8 sizes x 4 step counts x 3 guidance scales x with and without the refiner.

    All 192 kinds come once before any comes twice; the order of the table is not that of the kinds.
    """
    kinds = list(itertools.product(SIZES, STEPS, GUIDANCE_SCALES, (False, True)))
    # A stride without a common factor with 192 goes through every kind, neighbours far apart.
    order = [kinds[(71 * index) % len(kinds)] for index in range(num_rows)]
    return [
        _request(index, size_px=size, steps=steps, guidance_scale=scale, refiner=refiner)
        for index, (size, steps, scale, refiner) in enumerate(order)
    ]


def prompt_text(index: int) -> str:
    """A caption in the words of the embedded model."""
    shape, color = _SHAPES[index % len(_SHAPES)], _COLORS[index // 6 % len(_COLORS)]
    return f"a large {color} {shape}, on a {_COLORS[(index + 3) % len(_COLORS)]} background"


def write_table(rows: Sequence[Request], path: Path) -> Path:
    """The rows as a parquet prompt table."""
    columns = "id prompt seed height width steps guidance_scale refiner handoff".split()
    table = pa.table({name: [getattr(row, name) for row in rows] for name in columns})
    pq.write_table(table, path)
    return path


def _request(
    index: int, *, size_px: tuple[int, int], steps: int, guidance_scale: float, refiner: bool
) -> Request:
    return Request(
        id=f"row-{index:06d}",
        prompt=prompt_text(index),
        seed=index,
        height=size_px[0],
        width=size_px[1],
        steps=steps,
        guidance_scale=guidance_scale,
        refiner=refiner,
        handoff=HANDOFF,
    )
