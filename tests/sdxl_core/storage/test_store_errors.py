"""When a failed operation is tried again, and what is told of it."""

import errno
import logging
import random
import time

import pytest

from sdxl_core.contract.errors import StoreError
from sdxl_core.storage.store_errors import call_with_retries, local_error


class Flaky:
    """Fails a number of times, then works."""

    def __init__(self, num_failures: int, *, retryable: bool = True) -> None:
        self.num_failures = num_failures
        self.num_calls = 0
        self.retryable = retryable

    def __call__(self) -> str:
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            raise StoreError(f"failure {self.num_calls}", retryable=self.retryable)
        return "done"


def test_passing_failure_is_tried_again_with_growing_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    operation = Flaky(2)
    started_s = time.monotonic()

    with caplog.at_level(logging.WARNING):
        assert call_with_retries(operation, retries=3) == "done"

    assert operation.num_calls == 3
    assert time.monotonic() - started_s >= (0.2 + 0.4) / 2
    assert "try 1 of 4 failed" in caplog.text
    assert "failure 2" in caplog.text


def test_lasting_failure_is_not_tried_again() -> None:
    operation = Flaky(5, retryable=False)

    with pytest.raises(StoreError, match="failure 1"):
        call_with_retries(operation, retries=3)

    assert operation.num_calls == 1


def test_last_failure_is_raised_when_the_tries_are_used_up() -> None:
    operation = Flaky(5)

    with pytest.raises(StoreError, match="failure 2") as caught:
        call_with_retries(operation, retries=1)

    assert caught.value.retryable
    assert operation.num_calls == 2


def test_retrying_leaves_the_random_state_of_the_job_alone() -> None:
    random.seed(7)
    expected = random.random()
    random.seed(7)

    call_with_retries(Flaky(1), retries=1)

    assert random.random() == expected


@pytest.mark.parametrize(
    ("number", "told", "retryable"),
    [
        (errno.ENOSPC, "disk full; free space", False),
        (errno.EDQUOT, "disk quota used up; free space", False),
        (errno.EFBIG, "ulimit", False),
        (errno.EACCES, "right to use it", False),
        (errno.EROFS, "right to use it", False),
        (errno.ENOENT, "check the path", False),
        (errno.ENAMETOOLONG, "another path", False),
        (errno.EIO, "run the same command again", True),
        (errno.ESTALE, "run the same command again", True),
    ],
)
def test_local_errors_say_what_to_do(number: int, told: str, retryable: bool) -> None:
    error = local_error(OSError(number, "?"), action="write", url="/out/x.png")

    assert str(error).startswith("cannot write /out/x.png: ")
    assert told in str(error)
    assert error.retryable == retryable
