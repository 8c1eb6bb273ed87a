"""The contact sheet: cells in their places, texts wrapped, nothing left out or overlapping."""

import io

import numpy as np
import pytest
from PIL import Image

from sdxl_core.storage.contact_sheet import CELL_PX, MAX_CELLS, Cell, draw_contact_sheet, fitted

PURE = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


def cell(number: int, size: tuple[int, int] = (64, 64), prompt: str = "a cat") -> Cell:
    rgb_HWC = np.full((*size, 3), PURE[number % len(PURE)], np.uint8)
    return Cell(rgb_HWC=rgb_HWC, prompt=prompt, note="note")


def drawn(
    cells: list[Cell], title: str = "title"
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(draw_contact_sheet(cells, title))))


@pytest.mark.parametrize("num_cells", [0, 1, 5, 13, MAX_CELLS])
def test_every_image_is_shown_whole(num_cells: int) -> None:
    sheet = drawn([cell(n) for n in range(num_cells)])

    packed = sheet.astype(np.int32) @ (1 << 16, 1 << 8, 1)
    num_pixels = dict(zip(*np.unique(packed, return_counts=True), strict=True))
    for number, (red, green, blue) in enumerate(PURE):
        num_images = len(range(number, num_cells, len(PURE)))
        found = num_pixels.get(red << 16 | green << 8 | blue, 0)
        assert found == num_images * 128 * 128


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 128), (256, 256)),
        ((64, 64), (128, 128)),
        ((8, 8), (16, 16)),
        ((1024, 1024), (256, 256)),
        ((768, 1344), (146, 256)),
        ((2048, 1), (256, 1)),
    ],
)
def test_images_fit_their_cell_and_are_enlarged_at_most_twofold(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert fitted(np.zeros((*size, 3), np.uint8)).shape == (*expected, 3)


@pytest.mark.parametrize(
    "prompt",
    ["", " ", "word " * 500, "x" * 1_000_000, "图" * 300, "a\nb\tc\0d\u202e", "🐈" * 50],
    ids=["empty", "blank", "long", "one-word", "cjk", "controls", "emoji"],
)
def test_any_prompt_stays_in_its_cell(prompt: str) -> None:
    sheet = drawn([cell(n, (128, 128), prompt) for n in range(4)])
    paper = sheet[0, 0]

    # The gaps between the columns and the margin below stay empty, whatever the text is.
    for column in range(3):
        left = 28 + column * (CELL_PX + 20) + CELL_PX
        assert (sheet[92:, left + 4 : left + 18] == paper).all()
    assert (sheet[-6:] == paper).all()


def test_sheet_is_the_same_every_time() -> None:
    cells = [cell(n, prompt="größe") for n in range(3)]

    assert draw_contact_sheet(cells, "t") == draw_contact_sheet(cells, "t")
