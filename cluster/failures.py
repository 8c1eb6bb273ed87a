"""The boundary of a part: whatever happens inside a stage becomes failed rows or a stopped job.

This is the one module that catches everything. A stage may fail in three ways. A row's own fault
is a ``RowError`` and fails that row. The storage failing for good (full disk, no access, a
connection that does not come back) stops the job with nothing lost: what is committed stays, the
part in hand is made again by the next run. Everything else is tried again, first the whole part,
then row by row, so that one row that crashes a library fails alone.

A worker that dies leaves no exception behind. The hub counts how often each stage has begun a
part; a part that was begun too often is failed instead of being tried for ever.
"""

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

from cluster.messages import PartWork, RowWork
from sdxl_core.contract.errors import RowError, SdxlError, StoreError
from sdxl_core.contract.reasons import Reason
from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.contract.samples import RawSample, Rejection, reject
from sdxl_core.storage.parts import PartRecord

logger = logging.getLogger(__name__)

Made = TypeVar("Made")
Stage = Callable[[PartWork, list[RowWork]], None]

# After one of these the CUDA context of the process is of no use any more.
_BROKEN_DEVICE = ("CUDA error", "device-side assert", "cudaError")


def guard_rows(work: PartWork, run: Stage, *, stage: str, attempt: int, max_attempts: int) -> None:
    """Runs a stage over the pending rows of a part; every row ends done or failed.

    Args:
        work: The part; rows are changed in place.
        run: The stage: (part, rows to run).
        stage: Its name, for messages.
        attempt: How often this stage has begun this part, this time included.
        max_attempts: Begin it so often at most.
    """
    if attempt > max_attempts:
        _fail(
            work.pending,
            f"{stage}: the worker died {attempt - 1} times on part {work.part}; its log says why. "
            "Fix the cause and run again with --retry-failed",
        )
        return
    try:
        run(work, work.pending)
        return
    except StoreError as error:
        work.fatal = f"{stage}, part {work.part}: {error}"
        return
    except RowError:
        pass  # of one row; which one it is shows when they go one by one
    except Exception as error:
        _leave_broken_process(error)
        logger.warning("%s failed on part %d, rows go one by one: %s", stage, work.part, error)
    for row in work.pending:
        try:
            run(work, [row])
        except RowError as error:
            row.error = error
        except StoreError as error:
            work.fatal = f"{stage}, part {work.part}: {error}"
            return
        except Exception as error:
            _leave_broken_process(error)
            _fail([row], f"{stage}: {describe(error)}")


def guard_commit(work: PartWork, commit: Callable[[], None], *, stage: str) -> None:
    """Runs the writing of a part. There is nobody to fail here: it succeeds or the job stops."""
    for pause_s in (0.5, 2.0, None):
        try:
            commit()
            return
        except StoreError as error:
            work.fatal = f"{stage}, part {work.part}: {error}"
            return
        except Exception as error:
            work.fatal = f"{stage}, part {work.part}: {describe(error)}"
            logger.warning("%s failed on part %d: %s", stage, work.part, traceback.format_exc())
            if pause_s is None:
                return
        work.fatal = ""
        time.sleep(pause_s)


def guard_part(
    make: Callable[[], PartRecord], *, what: str, attempt: int, max_attempts: int
) -> PartRecord | str:
    """Makes a part of a dataset whole, or says why the job cannot go on.

    Args:
        make: Makes all of the part and commits it; called up to three times.
        what: The part, for messages: which one, and where its rows come from.
        attempt: How often this part was begun, this time included; a worker that died left no more.
        max_attempts: Begin it so often at most.

    Returns:
        The record, or the message that stops the job.
    """
    if attempt > max_attempts:
        return (
            f"{what}: the worker died {attempt - 1} times; its log says why (often too little "
            "memory, or a picture that crashes its decoder). More tries: --how.max-attempts"
        )
    fatal = ""
    for pause_s in (0.5, 2.0, None):
        try:
            return make()
        except StoreError as error:
            fatal = f"{what}: {error}"
            if not error.retryable:
                return fatal
        except SdxlError as error:
            return f"{what}: {error}"
        except Exception as error:
            _leave_broken_process(error)
            fatal = f"{what}: {describe(error)}"
            logger.warning("%s failed: %s", what, traceback.format_exc())
        if pause_s is not None:
            logger.warning("%s; trying the whole of it again", fatal)
            time.sleep(pause_s)
    return fatal


def guard_sample(raw: RawSample, make: Callable[[RawSample], Made | Rejection]) -> Made | Rejection:
    """Makes samples, or a plan, of one row; what nobody expected becomes a rejection."""
    try:
        return make(raw)
    except MemoryError as error:
        return reject(raw, RejectReason.OUT_OF_MEMORY, describe(error))
    except Exception as error:
        logger.warning("row %r: %s", raw.key, traceback.format_exc())
        return reject(raw, RejectReason.INTERNAL_ERROR, describe(error))


def guard_read(part: int, read: Callable[[], PartWork]) -> PartWork | str:
    """Reads a part; a part that cannot be read stops the job, and the message says which file."""
    try:
        return read()
    except Exception as error:
        logger.warning("part %d cannot be read: %s", part, traceback.format_exc())
        return f"read, part {part}: {describe(error)}"


def try_twice(
    call: Callable[[], object], *, what: str, first_message: str, clean_up: Callable[[], object]
) -> None:
    """Calls once more after a failure that a busy machine passes through.

    Args:
        call: What to do.
        what: Its name, for the log.
        first_message: Part of the message of the failure that is worth a second try. Ray raises a
            bare ``Exception`` there, so the message is all there is to tell it by.
        clean_up: Called between the two.

    Raises:
        RuntimeError: if the second try fails in that way too; other failures come through as is.
    """
    for is_last in (False, True):
        try:
            call()
            return
        except Exception as error:
            if first_message not in str(error):
                raise
            clean_up()
            if is_last:
                raise RuntimeError(f"{what}: {describe(error)}") from error
            logger.warning("%s timed out, the machine is busy; trying once more", what)


@contextlib.contextmanager
def ending_with_its_device() -> Iterator[None]:
    """Ends this process when what is called within finds its device unusable; other errors pass."""
    try:
        yield
    except Exception as error:
        _leave_broken_process(error)
        raise


def describe(error: BaseException) -> str:
    """An error in one line: type, message, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    message = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {message}{where}"


def _fail(rows: list[RowWork], detail: str) -> None:
    for row in rows:
        row.error = RowError(Reason.INTERNAL_ERROR, detail)


def _leave_broken_process(error: Exception) -> None:
    """Ends a worker whose device is unusable; Ray starts a new one and repeats the part."""
    if any(sign in str(error) for sign in _BROKEN_DEVICE):
        logger.error("the device is in a broken state, this worker ends: %s", error)
        logging.shutdown()
        os._exit(1)
