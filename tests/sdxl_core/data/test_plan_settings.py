"""Shares and sizes are what the settings say, and settings that cannot be are refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.plan import PlanSettings, Remainder, plan_epoch
from tests.sdxl_core.data.manifests import (
    BUCKETS,
    all_rows,
    even_manifest,
    make_manifest,
    times_seen,
)


@pytest.mark.parametrize("temperature", [1.0, 2.0, math.inf])
def test_buckets_have_the_shares_that_weights_and_temperature_give_them(
    temperature: float,
) -> None:
    rows = (4000, 400, 40, 2000)
    manifest = even_manifest(rows, unit_rows=8)
    weights = {BUCKETS[0]: 0.5, BUCKETS[1]: 3.0, BUCKETS[3]: 0.0}
    settings = PlanSettings(
        seed=0, global_batch_size=8, bucket_weights=weights, bucket_temperature=temperature
    )
    wanted = np.array([0.5, 3.0, 1.0, 0.0]) * np.array(rows) ** (1 / temperature)
    wanted = wanted / wanted.sum() * (4000 + 400 + 40) / 8 * 5
    found = sum(
        np.bincount(plan_epoch(manifest, settings, epoch).bucket_of_batch, minlength=4)
        for epoch in range(5)
    )
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize("remainder", ["drop", "repeat", "carry"])
def test_buckets_that_have_no_weights_have_the_shares_of_their_rows(remainder: Remainder) -> None:
    manifest = even_manifest([800, 400, 80], unit_rows=8)
    settings = PlanSettings(seed=0, global_batch_size=8, remainder=remainder)
    plan = plan_epoch(manifest, settings, 1)
    assert np.bincount(plan.bucket_of_batch, minlength=4).tolist() == [100, 50, 10, 0]
    assert set(times_seen(plan.batches()).values()) == {1}


@pytest.mark.parametrize("weight", [2.0, 0.5, 0.3])
def test_weight_of_a_dataset_is_how_often_its_rows_come(weight: float) -> None:
    manifest = even_manifest([800], unit_rows=4, weights=(1.0, weight))
    settings = PlanSettings(seed=0, global_batch_size=20)
    num_epochs = 10
    seen = times_seen(
        batch
        for epoch in range(num_epochs)
        for batch in plan_epoch(manifest, settings, epoch).batches()
    )
    times = np.array([seen[row] for row in sorted(all_rows(manifest))]).reshape(-1, 2, 4)
    carried = 20  # rows of the last pass at most
    assert abs(times[:, 0].sum() - 400 * num_epochs) <= carried
    assert abs(times[:, 1].sum() - 400 * num_epochs * weight) <= carried + 4
    assert times[:, 1].max() <= math.ceil(num_epochs * weight)


@given(
    size=st.integers(1, 40),
    multiple=st.integers(1, 8),
    buckets=st.lists(st.sampled_from(BUCKETS), min_size=1, unique=True),
)
def test_area_scaled_batches_hold_about_equally_many_pixels(
    size: int, multiple: int, buckets: list[tuple[int, int]]
) -> None:
    manifest = make_manifest([(BUCKETS.index(bucket), 5, 0) for bucket in buckets])
    settings = PlanSettings(seed=0, global_batch_size=size * multiple, area_scaled_batches=True)
    plan = plan_epoch(manifest, settings, 0, world_batch_multiple=multiple)
    budget_px = size * multiple * 128 * 128
    assert plan.batch_size_of((128, 128)) == size * multiple
    for height, width in BUCKETS:
        batch_size = plan.batch_size_of((height, width))
        assert batch_size % multiple == 0
        assert batch_size * height * width <= budget_px
        assert (batch_size + multiple) * height * width > budget_px


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size: found 0, expected at least 1"),
        ({"window_units": 0}, "window_units: found 0"),
        ({"bucket_temperature": 0.5}, "bucket_temperature: found 0.5, expected at least 1"),
        ({"bucket_temperature": math.nan}, "bucket_temperature: found nan"),
        ({"remainder": "keep"}, "remainder: found 'keep'.*carry"),
        ({"bucket_weights": {(64, 64): -1.0}}, "weight of bucket 64x64: found -1.0"),
        ({"bucket_weights": {(64, 65): 1.0}}, "found 64x65, expected .*64x64, 64x96"),
        ({"bucket_weights": dict.fromkeys(BUCKETS, 0.0)}, "nothing to train on"),
        ({"remainder": "drop", "global_batch_size": 64}, "none of 4 buckets.*one batch of 64"),
        ({"global_batch_size": 10}, "found 10, expected a multiple of 4"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], message: str) -> None:
    manifest = even_manifest([40, 40], unit_rows=4)
    fine: dict[str, object] = {"seed": 0, "global_batch_size": 8}
    with pytest.raises(ConfigError, match=message):
        plan_epoch(manifest, PlanSettings(**fine | changes), 0, world_batch_multiple=4)  # type: ignore[arg-type]
