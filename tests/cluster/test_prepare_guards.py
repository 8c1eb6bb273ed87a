"""What becomes of a part of prepare that fails, and of a row that nobody expected."""

from pathlib import Path

import numpy as np
import pytest

from cluster import failures
from cluster.prepare_state import (
    PreparePlan,
    num_damaged,
    read_counts,
    read_plan,
    refuse_other_inputs,
    write_plan,
)
from sdxl_core.contract.errors import ConfigError, SchemaError, StoreError
from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.contract.samples import RawSample, Rejection
from sdxl_core.storage.parts import PartRecord
from sdxl_core.storage.stores import open_store

RECORD = PartRecord(part=3, num_rows=0, num_by_status={}, num_by_reason={}, files=())
RAW = RawSample(key="k", row_index=0, source="a.tar#k.jpg", image=b"", captions=("a",))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)


def failing(errors: list[Exception], calls: list[int]) -> PartRecord:
    calls.append(1)
    if len(calls) <= len(errors):
        raise errors[len(calls) - 1]
    return RECORD


@pytest.mark.parametrize("error", [StoreError("cut off", retryable=True), ValueError("odd")])
def test_part_that_fails_in_passing_is_made_again_whole(error: Exception) -> None:
    calls: list[int] = []
    made = failures.guard_part(
        lambda: failing([error, error], calls), what="slice 3", attempt=1, max_attempts=2
    )
    assert made == RECORD
    assert len(calls) == 3


def test_part_that_keeps_failing_stops_the_job_with_its_name() -> None:
    calls: list[int] = []
    errors: list[Exception] = [StoreError("5 rows came out, but 6", retryable=True)] * 9
    made = failures.guard_part(
        lambda: failing(errors, calls), what="slice 3 (a.tar)", attempt=1, max_attempts=2
    )
    assert made == "slice 3 (a.tar): 5 rows came out, but 6"
    assert len(calls) == 3


@pytest.mark.parametrize("error", [StoreError("disk full", retryable=False), SchemaError("other")])
def test_part_that_fails_for_good_is_not_tried_again(error: Exception) -> None:
    calls: list[int] = []
    made = failures.guard_part(
        lambda: failing([error] * 9, calls), what="slice 3", attempt=1, max_attempts=2
    )
    assert made == f"slice 3: {error}"
    assert len(calls) == 1


def test_part_whose_worker_died_too_often_is_not_begun_again() -> None:
    made = failures.guard_part(lambda: RECORD, what="slice 3", attempt=3, max_attempts=2)
    assert isinstance(made, str)
    assert made.startswith("slice 3: the worker died 2 times")
    assert "--how.max-attempts" in made


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("by zero"), RejectReason.INTERNAL_ERROR),
        (MemoryError(), RejectReason.OUT_OF_MEMORY),
    ],
)
def test_row_with_an_unexpected_error_is_rejected_and_names_it(
    error: Exception, reason: RejectReason
) -> None:
    def make(_raw: RawSample) -> Rejection:
        raise error

    rejection = failures.guard_sample(RAW, make)
    assert (rejection.id, rejection.reason) == ("k", reason)
    assert type(error).__name__ in rejection.detail


def test_filters_are_no_damage_and_everything_else_is() -> None:
    assert num_damaged({"too_small": 3, "duplicate_exact": 2, "above_max": 1}) == 0
    assert num_damaged({"too_small": 3, "corrupt_image": 2, "non_finite_latents": 1}) == 3


def test_plan_comes_back_as_written_and_refuses_other_inputs(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    plan = PreparePlan(
        fingerprint="f",
        identities={"sources": "aa", "model": "mm"},
        num_rows=7,
        num_slices=2,
        merged={(64, 256): (72, 224)},
        sources=[{"url": "s3://b/a.tar", "weight": 2.5}],
    )
    assert read_plan(store) is None
    assert read_counts(store) is None
    write_plan(store, plan, np.array([3, 4]))
    assert read_plan(store) == plan
    counts = read_counts(store)
    assert counts is not None
    assert counts.tolist() == [3, 4]
    refuse_other_inputs(plan, plan.identities, "OUT")
    with pytest.raises(ConfigError, match=r"OUT was begun with other inputs .*\n  model: mm -> nn"):
        refuse_other_inputs(plan, {"sources": "aa", "model": "nn"}, "OUT")
