"""A row's seed is a pure function of the run's seed and the row's id."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.seeds import MAX_SEED, row_seed


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
