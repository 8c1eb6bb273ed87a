"""Samples that are set aside by a hash of their id."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.holdout import HeldRow, groups_of_one_size, holdout_places, set_aside
from sdxl_core.data.manifest import manifest_of
from sdxl_core.storage.sample_reading import read_unit
from sdxl_core.storage.stores import open_file
from tests.cluster.train_samples import write_samples


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_samples(tmp_path_factory.mktemp("samples"), model_digest="m")


@given(ids=st.lists(st.text(max_size=20), max_size=20))
def test_place_of_an_id_is_its_own_and_lies_between_0_and_1(ids: list[str]) -> None:
    together = holdout_places(ids)
    assert together.shape == (len(ids),)
    assert ((together >= 0) & (together < 1)).all()
    assert together.tolist() == [holdout_places([sample_id])[0] for sample_id in ids]


def test_places_are_spread_evenly() -> None:
    places = holdout_places([str(number) for number in range(10_000)])
    counts, _ = np.histogram(places, bins=10, range=(0, 1))
    # 1000 in each, with a standard deviation of 30.
    assert (abs(counts - 1000) < 150).all()


def test_places_do_not_change_from_version_to_version() -> None:
    """Another function would train on what was held out before."""
    assert holdout_places(["a", "sample-1"]) == pytest.approx(
        [0.055776611622, 0.661018779297], abs=1e-11
    )


def ids_of(url: str, unit: int) -> list[str]:
    ids: list[str] = read_unit(*open_file(url), unit, ("id",))["id"].to_pylist()
    return ids


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_counts_of_what_is_left_and_rows_to_measure_are_those_of_the_ids(
    samples: str, share: float
) -> None:
    manifest = manifest_of([samples])
    rest, rows = set_aside(manifest, share, num_measured=1000)
    expected_left, expected_held = {}, set()
    for file, index in zip(manifest.unit_file, manifest.unit_index, strict=True):
        url = manifest.files[file]
        ids = ids_of(url, int(index))
        held = holdout_places(ids) < share
        expected_held |= {name for name, is_held in zip(ids, held, strict=True) if is_held}
        if not held.all():
            expected_left[url, int(index)] = int((~held).sum())
    left = {
        (rest.files[file], int(index)): int(count)
        for file, index, count in zip(rest.unit_file, rest.unit_index, rest.unit_rows, strict=True)
    }
    assert left == expected_left
    assert {ids_of(row.url, row.unit)[row.row] for row in rows} == expected_held
    assert rest.num_rows + len(rows) == manifest.num_rows
    assert [row.bucket for row in rows] == sorted(row.bucket for row in rows)


def test_rows_to_measure_are_the_same_of_a_larger_share(samples: str) -> None:
    manifest = manifest_of([samples])
    few = set_aside(manifest, 0.2, num_measured=5)[1]
    assert few == set_aside(manifest, 0.6, num_measured=5)[1]
    more = set_aside(manifest, 0.6, num_measured=20)[1]
    assert set(few) < set(more)


def test_share_that_holds_none_or_all_is_refused(samples: str) -> None:
    manifest = manifest_of([samples])
    with pytest.raises(ConfigError, match="found 0 of 70 samples with --holdout 1e-09"):
        set_aside(manifest, 1e-9, num_measured=5)
    with pytest.raises(ConfigError, match="found 70 of 70 samples"):
        set_aside(manifest, 1 - 1e-9, num_measured=5)


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    size=st.integers(1, 5),
)
def test_groups_hold_all_rows_in_order_each_of_one_bucket(counts: list[int], size: int) -> None:
    rows = [
        HeldRow(url="u", unit=number, row=row, bucket=(8 * number, 8))
        for number, count in enumerate(counts)
        for row in range(count)
    ]
    groups = list(groups_of_one_size(rows, size))
    assert [row for group in groups for row in group] == rows
    assert all(1 <= len(group) <= size for group in groups)
    assert all(len({row.bucket for row in group}) == 1 for group in groups)
    assert len(groups) == sum(-(-count // size) for count in counts)
