"""One picture of many: labelled cells, each an image with its prompt below.

Shapes: H, W height and width in pixels, C=3 channels (red, green, blue).
"""

import dataclasses
import functools
import io
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

MAX_CELLS = 48
CELL_PX = 256
MAX_ENLARGEMENT = 2.0

_GAP_PX = 20
_MARGIN_PX = 28
_HEADER_PX = 64
_PROMPT_LINES = 3
_WIDE_FONT = "DejaVuSans.ttf"
_LINE_PX = 19
_LABEL_PX = 10 + (_PROMPT_LINES + 1) * _LINE_PX
_PAPER, _INK, _FAINT, _WELL = "#f7f7f5", "#1d1d1f", "#76767a", "#e9e9e6"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One image of the sheet, ``rgb_HWC`` uint8 of any size, with its prompt and a short note."""

    rgb_HWC: npt.NDArray[np.uint8]
    prompt: str
    note: str


def fitted(rgb_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The image at the size that a cell shows it in: at most 256 px, enlarged at most twofold.

    Small images are enlarged smoothly (Lanczos): blocks would look like a fault of the model.
    """
    height, width = rgb_HWC.shape[:2]
    scale = min(CELL_PX / max(height, width), MAX_ENLARGEMENT)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(rgb_HWC)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def draw_contact_sheet(cells: Sequence[Cell], title: str) -> bytes:
    """A PNG with all cells in rows, left to right, and a title above.

    Args:
        cells: 0 to 48 of them.
        title: One line.
    """
    num_columns = _num_columns(len(cells))
    num_rows = math.ceil(len(cells) / num_columns)
    width = 2 * _MARGIN_PX + num_columns * (CELL_PX + _GAP_PX) - _GAP_PX
    height = _MARGIN_PX + _HEADER_PX + num_rows * (CELL_PX + _LABEL_PX + _GAP_PX)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    heading = _wrapped(draw, title, _font(24), width - 2 * _MARGIN_PX, max_lines=1)
    draw.text((_MARGIN_PX, _MARGIN_PX), heading[0] if heading else "", _INK, _font(24))
    for number, cell in enumerate(cells):
        row, column = divmod(number, num_columns)
        left = _MARGIN_PX + column * (CELL_PX + _GAP_PX)
        top = _MARGIN_PX + _HEADER_PX + row * (CELL_PX + _LABEL_PX + _GAP_PX)
        _draw_cell(sheet, draw, cell, left, top)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, left: int, top: int
) -> None:
    image = Image.fromarray(fitted(cell.rgb_HWC))
    draw.rectangle((left, top, left + CELL_PX - 1, top + CELL_PX - 1), fill=_WELL)
    x, y = left + (CELL_PX - image.width) // 2, top + (CELL_PX - image.height) // 2
    sheet.paste(image, (x, y))
    y = top + CELL_PX + 10
    for line in _wrapped(draw, cell.prompt, _font(14), CELL_PX, max_lines=_PROMPT_LINES):
        draw.text((left, y), line, _INK, _font(14))
        y += _LINE_PX
    for line in _wrapped(draw, cell.note, _font(12), CELL_PX, max_lines=1):
        draw.text((left, y + 2), line, _FAINT, _font(12))


def _num_columns(num_cells: int) -> int:
    if num_cells <= 4:
        return max(2, num_cells)
    return min(8, math.ceil(math.sqrt(num_cells * 4 / 3)))


def _wrapped(
    draw: ImageDraw.ImageDraw, text: str, font: Any, width_px: int, *, max_lines: int
) -> list[str]:
    """``text`` in at most ``max_lines`` lines that fit; an ellipsis tells that some is missing."""
    # Ten times what can fit is enough to look at; prompts may be a megabyte.
    words = _printable(text[: 10 * max_lines * width_px // 5]).split()
    lines: list[str] = []
    while words and len(lines) < max_lines:
        line = words.pop(0)
        while words and draw.textlength(f"{line} {words[0]}", font) <= width_px:
            line = f"{line} {words.pop(0)}"
        if draw.textlength(line, font) > width_px:  # one word wider than the cell
            kept = _longest_start(draw, line, font, width_px)
            words.insert(0, line[len(kept) :])
            line = kept
        lines.append(line)
    if words and lines:
        lines[-1] = _longest_start(draw, lines[-1], font, width_px, end="…") + "…"
    return lines


def _longest_start(
    draw: ImageDraw.ImageDraw, text: str, font: Any, width_px: int, *, end: str = ""
) -> str:
    """As many characters from the start as fit together with ``end``, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if draw.textlength(text[:middle] + end, font) <= width_px:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def _printable(text: str) -> str:
    if not _has_wide_font():  # "größe" as "grosse" reads better than with boxes
        text = unicodedata.normalize("NFKD", text.replace("ß", "ss").replace("×", "x"))
        text = "".join(c for c in text if not unicodedata.combining(c))
        text = text.encode("ascii", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in text)


@functools.cache
def _font(size_px: int) -> Any:
    """DejaVu Sans where it is installed (most Linux systems), else Pillow's own: plain Latin."""
    try:
        return ImageFont.truetype(_WIDE_FONT, size_px)
    except OSError:
        return ImageFont.load_default(size_px)


@functools.cache
def _has_wide_font() -> bool:
    return bool(_font(12).getname()[0] == "DejaVu Sans")
