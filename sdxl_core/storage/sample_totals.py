"""Counts over samples and rejected rows, as sums that add up over parts.

Every finished part keeps its totals in its commit record, so the report of a billion rows reads
records alone. Histograms have fixed edges; their first and last count are what lies outside.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

# Steps of the logarithm to base 2; shifted by half a step where 1 is to be in the middle of a bin.
_EDGES: Final[dict[str, npt.NDArray[np.float64]]] = {
    "aspect": 2.0 ** np.arange(-3.125, 3.2, 0.25),  # width / height of the original
    "size_px": 2.0 ** np.arange(4, 14.1, 0.25),  # square root of the original's pixels
    "aesthetic": np.arange(0, 10.01, 0.25),
    "caption_characters": 2.0 ** np.arange(0, 13.1, 0.5),
    "upscale": 2.0 ** np.arange(-4.125, 4.2, 0.25),  # resized / original
}
HISTOGRAMS: Final = tuple(_EDGES)
# Resizing to whole pixels may enlarge by a hair.
UPSCALED_ABOVE: Final = 1.005

_COLUMNS: Final = (
    *("captions", "original_height", "original_width", "target_height", "target_width"),
    *("flip", "aesthetic", "upscale", "notes"),
)


def edges(name: str) -> npt.NDArray[np.float64]:
    """The edges of a histogram: ascending; bin i holds ``edges[i] <= value < edges[i + 1]``."""
    return _EDGES[name]


def _no_counts() -> dict[str, list[int]]:
    return {name: [0] * (len(edges_E) + 1) for name, edges_E in _EDGES.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleTotals:
    """What some parts hold. ``num_source_rows`` = rows with samples + ``num_rejected``.

    ``num_by_bucket`` has keys ``HxW``, height before width; ``histograms`` has for each name the
    counts below the first edge, between the edges, and from the last edge on.
    """

    num_source_rows: int = 0
    num_samples: int = 0
    num_rejected: int = 0
    num_captions: int = 0
    num_upscaled: int = 0
    num_flipped: int = 0
    num_without_aesthetic: int = 0
    num_by_reason: dict[str, int] = dataclasses.field(default_factory=dict)
    num_by_bucket: dict[str, int] = dataclasses.field(default_factory=dict)
    num_by_note: dict[str, int] = dataclasses.field(default_factory=dict)
    histograms: dict[str, list[int]] = dataclasses.field(default_factory=_no_counts)


_ADAPTER: Any = pydantic.TypeAdapter(SampleTotals)


def tally_samples(samples: pa.Table, *, num_source_rows: int) -> SampleTotals:
    """The totals of some samples.

    Args:
        samples: the columns of ``samples_schema`` except for pictures, moments and text, which
            need not be there.
        num_source_rows: how many source rows they come from.
    """
    column = {name: samples[name].combine_chunks() for name in _COLUMNS}
    height_N, width_N, upscale_N = (
        np.asarray(column[name].to_numpy(zero_copy_only=False), np.float64)
        for name in ("original_height", "original_width", "upscale")
    )
    captions = pc.list_flatten(column["captions"])
    aesthetic = column["aesthetic"].drop_null()
    values = {
        "aspect": width_N / height_N,
        "size_px": np.sqrt(width_N * height_N),
        "aesthetic": aesthetic.to_numpy(zero_copy_only=False),
        "caption_characters": pc.utf8_length(captions).to_numpy(zero_copy_only=False),
        "upscale": upscale_N,
    }
    buckets = zip(
        column["target_height"].to_pylist(), column["target_width"].to_pylist(), strict=True
    )
    return SampleTotals(
        num_source_rows=num_source_rows,
        num_samples=samples.num_rows,
        num_captions=len(captions),
        num_upscaled=int((upscale_N > UPSCALED_ABOVE).sum()),
        num_flipped=int(pc.sum(column["flip"]).as_py() or 0),
        num_without_aesthetic=samples.num_rows - len(aesthetic),
        num_by_bucket=_sorted(Counter(f"{height}x{width}" for height, width in buckets)),
        num_by_note=_sorted(Counter(pc.list_flatten(column["notes"]).to_pylist())),
        histograms={name: _counts(name, values_N) for name, values_N in values.items()},
    )


def tally_rejected(rejected: pa.Table) -> SampleTotals:
    """The totals of some rejected rows; the column ``reason`` is needed."""
    return SampleTotals(
        num_source_rows=rejected.num_rows,
        num_rejected=rejected.num_rows,
        num_by_reason=_sorted(Counter(rejected["reason"].to_pylist())),
    )


def add_totals(totals: Iterable[SampleTotals]) -> SampleTotals:
    """The sum of all."""
    sums: dict[str, Any] = {}
    by_key: dict[str, Counter[str]] = {}
    counts = {name: np.zeros(len(edges_E) + 1, np.int64) for name, edges_E in _EDGES.items()}
    for one in totals:
        for name, value in vars(one).items():
            if isinstance(value, int):
                sums[name] = sums.get(name, 0) + value
            elif name != "histograms":
                by_key.setdefault(name, Counter()).update(value)
        for name, counts_B in one.histograms.items():
            counts[name] += counts_B
    sums |= {name: _sorted(counter) for name, counter in by_key.items()}
    sums["histograms"] = {name: counts_B.tolist() for name, counts_B in counts.items()}
    return SampleTotals(**sums)


def totals_to_json(totals: SampleTotals) -> dict[str, Any]:
    """As plain values, for a commit record."""
    return dataclasses.asdict(totals)


def totals_from_json(value: Any) -> SampleTotals:
    """What ``totals_to_json`` gave.

    Raises:
        pydantic.ValidationError: a ValueError; it is something else.
    """
    return cast(SampleTotals, _ADAPTER.validate_json(json.dumps(value), strict=True))


def _counts(name: str, values_N: npt.NDArray[Any]) -> list[int]:
    edges_E = _EDGES[name]
    bins_N = np.searchsorted(edges_E, values_N, side="right")
    return list(map(int, np.bincount(bins_N, minlength=len(edges_E) + 1)))


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items()))
