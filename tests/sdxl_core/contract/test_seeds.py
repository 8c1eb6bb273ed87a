"""A row's seed is a pure function of the run's seed and the row's id; a sample's of visits too."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.seeds import MAX_SEED, row_seed, sample_seed


@given(run_seed=st.integers(), row_id=st.text())
def test_seed_of_any_run_and_row_is_one_that_torch_takes(run_seed: int, row_id: str) -> None:
    seed = row_seed(run_seed, row_id)
    assert 0 <= seed <= MAX_SEED
    assert torch.Generator("cpu").manual_seed(seed).initial_seed() == seed


def test_seeds_of_many_rows_and_runs_are_all_different() -> None:
    seeds = {row_seed(run, str(row)) for run in range(-5, 5) for row in range(2000)}
    assert len(seeds) == 10 * 2000


def test_run_seed_and_row_id_do_not_run_into_each_other() -> None:
    assert row_seed(1, "2") != row_seed(12, "")
    assert row_seed(1, "2") != row_seed(1, "02")


def test_seeds_are_the_same_in_every_version() -> None:
    assert [row_seed(0, "0"), row_seed(42, "löwe")] == [8865205908059109814, 6643433967307400420]


@given(run_seed=st.integers(), visit=st.integers(), sample_id=st.text())
def test_seed_of_any_sample_is_one_that_torch_takes(
    run_seed: int, visit: int, sample_id: str
) -> None:
    assert 0 <= sample_seed(run_seed, visit, sample_id) <= MAX_SEED


def test_seeds_of_samples_differ_between_runs_visits_and_samples() -> None:
    seeds = {
        sample_seed(run, visit, str(sample))
        for run in range(5)
        for visit in (*range(5), 1 << 32)
        for sample in range(200)
    }
    assert len(seeds) == 5 * 6 * 200
    assert sample_seed(1, 23, "4") != sample_seed(12, 3, "4") != sample_seed(1, 2, "34")
    assert sample_seed(0, 0, "0") != row_seed(0, "0")
    assert sample_seed(0, 0, "0") != row_seed(0, "0\0000")


def test_seeds_of_samples_are_the_same_in_every_version() -> None:
    found = [sample_seed(0, 0, "0"), sample_seed(42, 3, "löwe")]
    assert found == [7599518559549170357, 3670568171705289810]
