"""Histograms as bars with ticks, ready for an SVG: everything is in the chart's own units."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from sdxl_core.storage.sample_totals import edges

WIDTH, HEIGHT = 520, 150  # of the area with the bars
_GAP = 1.5
_TICK_ROOM = 40  # as wide as the longest text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One bin: its rectangle, from the top left, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    words: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """One histogram. A tick is its x and its text."""

    title: str
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    num_values: int
    largest: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Axis:
    title: str
    ticks: Sequence[float]
    text: Callable[[float], str]
    is_log: bool = True


def make_chart(name: str, counts: Sequence[int]) -> Chart:
    """The chart of a histogram of ``SampleTotals``, cut to the bins that hold anything.

    Args:
        name: one of ``HISTOGRAMS``.
        counts: below the first edge, of each bin, and from the last edge on.
    """
    axis = _AXES[name]
    edges_E = edges(name).tolist()
    filled = np.flatnonzero(counts).tolist()
    if not filled:
        return Chart(title=axis.title, bars=(), ticks=(), num_values=0, largest=0)
    first, last = _with_margin(filled[0], filled[-1], len(counts))
    bin_width = WIDTH / (last - first + 1)
    largest = max(counts)
    bars = []
    for position, number in enumerate(range(first, last + 1)):
        height = counts[number] / largest * HEIGHT
        bars.append(
            Bar(
                x=round(position * bin_width + _GAP / 2, 2),
                y=round(HEIGHT - height, 2),
                width=round(bin_width - _GAP, 2),
                height=round(height, 2),
                words=f"{_range(edges_E, number, axis.text)}: {counts[number]:,}",
            )
        )
    return Chart(
        title=axis.title,
        bars=tuple(bars),
        ticks=tuple(_ticks(axis, edges_E, first, bin_width)),
        num_values=sum(counts),
        largest=largest,
    )


def _with_margin(first: int, last: int, num_counts: int) -> tuple[int, int]:
    """A bin more on either side, and at least nine of them, so that few values look like few."""
    first, last = first - 1, last + 1
    missing = max(0, 9 - (last - first + 1))
    first, last = first - missing // 2, last + (missing + 1) // 2
    return max(0, first), min(num_counts - 1, last)


def _range(edges_E: Sequence[float], number: int, text: Callable[[float], str]) -> str:
    if number == 0:
        return f"below {text(edges_E[0])}"
    if number == len(edges_E):
        return f"{text(edges_E[-1])} and more"
    return f"{text(edges_E[number - 1])} to {text(edges_E[number])}"


def _ticks(
    axis: _Axis, edges_E: Sequence[float], first: int, bin_width: float
) -> list[tuple[float, str]]:
    """Those of the axis's ticks that are on the chart; bin ``number`` begins at edge number - 1."""
    scale = math.log2 if axis.is_log else float
    places = [scale(edge) for edge in edges_E]
    found: list[tuple[float, str]] = []
    for value in axis.ticks:
        number = float(np.interp(scale(value), places, range(1, len(places) + 1)))
        x = (number - first) * bin_width
        has_room = not found or x - found[-1][0] >= _TICK_ROOM
        if 0 <= x <= WIDTH and has_room:
            found.append((round(x, 2), axis.text(value)))
    return found


def _plain(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.3g}"


def _times(value: float) -> str:
    return f"×{value:.3g}"


def _aspect(value: float) -> str:
    """Width to height, the way people say it."""
    return f"{value:.3g}:1" if value >= 1 else f"1:{1 / value:.3g}"


_POWERS = [2.0**power for power in range(-4, 15)]
_AXES = {
    "aspect": _Axis(title="Aspect ratio, width : height", ticks=_POWERS, text=_aspect),
    "size_px": _Axis(
        title="Size of the originals: √(height × width), pixels", ticks=_POWERS, text=_plain
    ),
    "aesthetic": _Axis(title="Aesthetic score", ticks=range(11), text=_plain, is_log=False),
    "caption_characters": _Axis(title="Caption length, characters", ticks=_POWERS, text=_plain),
    "upscale": _Axis(title="Resized / original: above ×1 enlarged", ticks=_POWERS, text=_times),
}
