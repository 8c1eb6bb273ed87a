"""Totals of parts add up to the totals of the whole, and every value is counted in its bin."""

import dataclasses
import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.samples import staged_table
from sdxl_core.storage.sample_totals import (
    HISTOGRAMS,
    SampleTotals,
    add_totals,
    edges,
    tally_rejected,
    tally_samples,
    totals_from_json,
    totals_to_json,
)
from tests.sdxl_core.storage.staged_samples import make_sample

TABLE = staged_table([make_sample(0, row, num_bytes=1) for row in range(30)], source_slice=0)


def test_totals_count_what_the_samples_hold() -> None:
    totals = tally_samples(TABLE, num_source_rows=30)
    rows = TABLE.to_pylist()

    assert totals.num_samples == 30
    assert totals.num_captions == sum(len(row["captions"]) for row in rows) == 45
    assert totals.num_upscaled == sum(row["upscale"] > 1 for row in rows) == 5
    assert totals.num_flipped == 8
    assert totals.num_without_aesthetic == 10
    assert totals.num_by_bucket == {"16x16": 10, "16x24": 10, "24x16": 10}
    assert totals.num_by_note == {"cmyk": 20, "exif_rotated": 10}
    for name in HISTOGRAMS:
        num_values = {"aesthetic": 20, "caption_characters": 45}.get(name, 30)
        assert sum(totals.histograms[name]) == num_values


@pytest.mark.parametrize("num_rows", [0, 1, 30])
def test_histograms_are_those_of_numpy(num_rows: int) -> None:
    table = TABLE.slice(0, num_rows)
    totals = tally_samples(table, num_source_rows=num_rows)
    aspect_N = np.array(
        [row["original_width"] / row["original_height"] for row in table.to_pylist()]
    )

    expected, _ = np.histogram(aspect_N, edges("aspect"))

    assert totals.histograms["aspect"][1:-1] == expected.tolist()


def test_values_outside_of_the_edges_are_counted_at_the_ends() -> None:
    sample = dataclasses.replace(
        make_sample(0, 1, num_bytes=1),
        original_height=1,
        original_width=1 << 30,
        aesthetic=-3.0,
        captions=("", "x" * 100_000),
    )
    histograms = tally_samples(staged_table([sample], source_slice=0), num_source_rows=1).histograms
    assert histograms["aspect"][-1] == histograms["size_px"][-1] == 1
    assert histograms["aesthetic"][0] == 1
    assert (histograms["caption_characters"][0], histograms["caption_characters"][-1]) == (1, 1)


def test_shapes_and_scales_of_one_are_in_the_middle_of_their_bins() -> None:
    for name in ("aspect", "upscale"):
        below, above = edges(name)[edges(name) < 1][-1], edges(name)[edges(name) > 1][0]
        assert below * above == pytest.approx(1)


@given(st.lists(st.integers(0, 30), max_size=4))
def test_totals_of_parts_add_up_to_those_of_the_whole(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), 30]
    parts = [
        tally_samples(TABLE.slice(start, stop - start), num_source_rows=stop - start)
        for start, stop in itertools.pairwise(places)
    ]
    rejected = tally_rejected(pa.table({"reason": ["too_small", "too_small", "empty_image"]}))

    total = add_totals([*parts, rejected])

    whole = tally_samples(TABLE, num_source_rows=30)
    assert total == add_totals([rejected, whole])
    assert (total.num_source_rows, total.num_samples, total.num_rejected) == (33, 30, 3)
    assert total.num_by_reason == {"empty_image": 1, "too_small": 2}
    assert total.histograms == whole.histograms
    assert totals_from_json(json.loads(json.dumps(totals_to_json(total)))) == total


def test_no_totals_add_up_to_nothing_and_other_json_is_refused() -> None:
    assert add_totals([]) == SampleTotals()
    with pytest.raises(ValueError, match="num_samples"):
        totals_from_json({"num_samples": "3"})
