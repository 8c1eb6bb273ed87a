import pytest

from cluster.failures import describe, guard_commit, guard_read, guard_rows, try_twice
from cluster.messages import PartWork, RowWork
from sdxl_core.contract.errors import RowError, SchemaError, StoreError
from sdxl_core.contract.reasons import Reason
from sdxl_core.diffusion.text_stage import TextStage
from sdxl_core.nets.model import random_model
from tests.cluster.rows import make_part
from tests.micro_models import MICRO_BASE


class CrashesOn:
    """A stage that a certain row makes raise; notes which rows it got through."""

    def __init__(self, bad: set[int], error: Exception) -> None:
        self.bad, self.error = bad, error
        self.done: list[int] = []

    def __call__(self, work: PartWork, rows: list[RowWork]) -> None:
        for row in rows:
            if row.input_row in self.bad:
                raise self.error
            self.done.append(row.input_row)


def outcome(work: PartWork) -> list[str | None]:
    return [None if row.error is None else str(row.error.reason) for row in work.rows]


def test_guard_rows_unforeseen_exception_fails_the_row_that_causes_it() -> None:
    work, stage = make_part(4), CrashesOn({102}, ZeroDivisionError("odd prompt"))
    guard_rows(work, stage, stage="encode", attempt=1, max_attempts=3)
    assert outcome(work) == [None, None, "internal_error", None]
    assert set(stage.done) == {100, 101, 103}
    detail = work.rows[2].error.detail  # type: ignore[union-attr]
    assert "encode: ZeroDivisionError: odd prompt (at test_failures.py:" in detail
    assert not work.fatal


def test_guard_rows_row_error_keeps_its_own_reason() -> None:
    work = make_part(3)
    stage = CrashesOn({100}, RowError(Reason.TOKENIZER_FAILED, "column 'prompt': …"))
    guard_rows(work, stage, stage="encode", attempt=1, max_attempts=3)
    assert outcome(work) == ["tokenizer_failed", None, None]


def test_guard_rows_prompt_that_crashes_the_tokenizer_fails_alone() -> None:
    work = make_part(3)
    # No prompt gets this far by itself (the table is checked first), so the row is corrupted here.
    object.__setattr__(work.rows[1].request, "prompt", b"bytes")
    texts = TextStage({"base": random_model(MICRO_BASE)})
    encoded = {}

    def encode(_: PartWork, rows: list[RowWork]) -> None:
        for row, found in zip(rows, texts.encode([row.request for row in rows]), strict=True):
            encoded[row.input_row] = found

    guard_rows(work, encode, stage="encode", attempt=1, max_attempts=3)
    assert outcome(work) == [None, "tokenizer_failed", None]
    assert set(encoded) == {100, 102}


def test_guard_rows_store_error_stops_the_job_and_fails_no_row() -> None:
    work = make_part(3)
    stage = CrashesOn(
        {101}, StoreError("cannot write /out: disk full; free space", retryable=False)
    )
    guard_rows(work, stage, stage="write", attempt=1, max_attempts=3)
    assert work.fatal == "write, part 7: cannot write /out: disk full; free space"
    assert outcome(work) == [None, None, None]


def test_guard_rows_part_begun_too_often_fails_its_rows_without_running() -> None:
    work, stage = make_part(2), CrashesOn(set(), ValueError())
    work.rows[0].error = RowError(Reason.NON_FINITE_IMAGE, "earlier")
    guard_rows(work, stage, stage="base", attempt=4, max_attempts=3)
    assert not stage.done
    assert outcome(work) == ["non_finite_image", "internal_error"]
    detail = work.rows[1].error.detail  # type: ignore[union-attr]
    assert "the worker died 3 times on part 7" in detail
    assert "--retry-failed" in detail


def test_guard_rows_last_allowed_attempt_still_runs() -> None:
    work, stage = make_part(2), CrashesOn(set(), ValueError())
    guard_rows(work, stage, stage="base", attempt=3, max_attempts=3)
    assert stage.done == [100, 101]


def test_guard_commit_passing_failure_is_tried_again() -> None:
    work, calls = make_part(1), []

    def commit() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError

    guard_commit(work, commit, stage="write")
    assert (len(calls), work.fatal) == (2, "")


def test_guard_commit_store_error_stops_at_once() -> None:
    work, calls = make_part(1), []

    def commit() -> None:
        calls.append(1)
        raise StoreError("cannot write: disk full", retryable=False)

    guard_commit(work, commit, stage="write")
    assert len(calls) == 1
    assert work.fatal == "write, part 7: cannot write: disk full"


def test_guard_read_names_part_and_cause() -> None:
    def read() -> PartWork:
        raise SchemaError("p.csv has changed since the run began")

    found = guard_read(3, read)
    assert isinstance(found, str)
    assert found.startswith("read, part 3: SchemaError: p.csv has changed since the run began")


def test_describe_is_one_bounded_line() -> None:
    text = describe(ValueError("a\nb" * 1000))
    assert "\n" not in text
    assert len(text) < 600


def test_try_twice_start_that_times_out_once_succeeds() -> None:
    calls: list[str] = []

    def start() -> None:
        calls.append("start")
        if calls.count("start") == 1:
            raise Exception("The current node timed out during startup.")

    try_twice(
        start,
        what="starting Ray",
        first_message="timed out during startup",
        clean_up=lambda: calls.append("clean"),
    )
    assert calls == ["start", "clean", "start"]


def test_try_twice_gives_up_after_the_second_time_and_lets_other_errors_through() -> None:
    def time_out() -> None:
        raise Exception("timed out during startup")

    with pytest.raises(RuntimeError, match=r"starting Ray: .*timed out"):
        try_twice(time_out, what="starting Ray", first_message="timed out", clean_up=lambda: None)
    with pytest.raises(ZeroDivisionError):
        try_twice(lambda: 1 / 0, what="x", first_message="timed out", clean_up=lambda: None)
