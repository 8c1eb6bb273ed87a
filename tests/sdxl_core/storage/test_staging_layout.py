"""The layout is a function of the seed and the staged units; its groups are as even as can be."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.staged_parts import StagedIndex, read_staged_index, read_staged_rows
from sdxl_core.storage.staging_layout import (
    MAX_GROUP_BYTES,
    Layout,
    duplicates_table,
    plan_layout,
    read_duplicates,
    read_layout,
    write_layout,
)
from sdxl_core.storage.stores import open_store
from tests.sdxl_core.storage.staged_samples import plain_rows, stage

sizes_of_units = st.lists(st.lists(st.integers(0, 50), max_size=8), max_size=6)


def make_index(sizes: list[list[int]]) -> StagedIndex:
    units = [(part, unit, size) for part, s in enumerate(sizes) for unit, size in enumerate(s)]
    columns = np.array(units, np.int64).reshape(-1, 3).T
    return StagedIndex(
        num_parts=len(sizes), part_U=columns[0], unit_U=columns[1], num_bytes_U=columns[2]
    )


def groups_of(layout: Layout) -> list[list[tuple[int, int]]]:
    return [layout.units(group) for group in range(layout.num_groups)]


@given(sizes=sizes_of_units, group_bytes=st.integers(1, 120), seed=st.integers(-5, 5))
def test_every_unit_and_every_rejected_file_is_in_one_group(
    sizes: list[list[int]], group_bytes: int, seed: int
) -> None:
    layout = plan_layout(make_index(sizes), seed=seed, group_bytes=group_bytes)

    groups = groups_of(layout)
    names = [(part, unit) for part, s in enumerate(sizes) for unit in range(len(s))]
    assert sorted(unit for group in groups for unit in group) == names
    rejected = [p for g in range(layout.num_groups) for p in layout.parts_with_rejected(g)]
    assert sorted(rejected) == list(range(len(sizes)))
    assert all(groups) or len(groups) == 1
    for group in groups:
        assert sum(sizes[p][u] for p, u in group) <= group_bytes or len(group) == 1


@given(sizes=sizes_of_units, data=st.data())
def test_layout_does_not_depend_on_the_order_in_which_units_are_listed(
    sizes: list[list[int]], data: st.DataObject
) -> None:
    index = make_index(sizes)
    order_U = np.array(data.draw(st.permutations(range(len(index.part_U)))), np.int64)
    shuffled = StagedIndex(
        num_parts=index.num_parts,
        part_U=index.part_U[order_U],
        unit_U=index.unit_U[order_U],
        num_bytes_U=index.num_bytes_U[order_U],
    )
    first, second = (plan_layout(i, seed=1, group_bytes=70) for i in (index, shuffled))
    assert groups_of(first) == groups_of(second)


def test_another_seed_gives_another_order() -> None:
    index = make_index([[1] * 50])
    orders = [plan_layout(index, seed=seed).unit_U.tolist() for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    assert np.std(np.mean(orders, axis=0)) < 10  # of 20 fair shuffles 3.2, of one repeated 14.4


def test_groups_are_even_and_as_few_as_the_limit_allows() -> None:
    layout = plan_layout(make_index([[10] * 101]), seed=0, group_bytes=100)
    num_units = np.diff(layout.start_G1)
    assert num_units.sum() == 101
    assert num_units.tolist() == [10] * 10 + [1] or num_units.min() >= 8
    assert len(num_units) == 11


@pytest.mark.parametrize("group_bytes", [0, -1, MAX_GROUP_BYTES + 1])
def test_group_that_memory_cannot_hold_is_refused(group_bytes: int) -> None:
    with pytest.raises(ConfigError, match="group_bytes"):
        plan_layout(make_index([[1]]), seed=0, group_bytes=group_bytes)


@pytest.mark.parametrize("sizes", [[], [[]], [[1, 2, 3], [], [4] * 40]])
def test_layout_reads_back_as_it_was_written(tmp_path: Path, sizes: list[list[int]]) -> None:
    staging = open_store(tmp_path)
    assert read_layout(staging) is None
    rows = read_staged_rows(staging, read_staged_index(staging))
    layout = plan_layout(make_index(sizes), seed=2**63 - 1, group_bytes=20)
    write_layout(staging, layout, duplicates_table(rows, [], [], []))

    again = read_layout(staging)

    assert again is not None
    assert groups_of(again) == groups_of(layout)
    assert (again.seed, again.num_staged_parts) == (layout.seed, layout.num_staged_parts)
    assert read_duplicates(staging, [0, 1]).num_rows == 0


def test_duplicates_are_found_by_their_slice_and_name_the_row_that_is_kept(tmp_path: Path) -> None:
    staging = stage(open_store(tmp_path), [plain_rows(3, part=p, num_bytes=9) for p in range(3)])
    index = read_staged_index(staging)
    rows = read_staged_rows(staging, index)
    layout = plan_layout(index, seed=0)
    write_layout(staging, layout, duplicates_table(rows, [7, 4], [0, 3], [False, True]))

    assert read_duplicates(staging, [0]).num_rows == 0
    assert read_duplicates(staging, [0, 1]).to_pylist() == [
        {"source_slice": 1, "row_index": 1, "reason": "duplicate_exact",
         "detail": "row 0 of slice 1 is kept, its id is 'part1/00000'"}
    ]  # fmt: skip
    assert read_duplicates(staging, [2])["reason"].to_pylist() == ["duplicate_near"]
