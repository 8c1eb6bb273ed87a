"""How a failed read or write becomes a ``StoreError``, when it is tried again, what is not shown.

Used by the two stores only. A message says where, what failed and what to do; access keys, secrets
and tokens are cut out of everything that a server or a library put into its own message.
"""

import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from sdxl_core.contract.errors import StoreError

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 20.0

_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
_SECRET_PATTERNS = (
    # user:password@host in an endpoint, and the parts of a signed request
    (re.compile(r"//[^/\s@]+@"), "//***@"),
    (
        re.compile(r"(?i)((?:credential|signature|security-token|secret_access_key)=)[^&\s,]+"),
        r"\1***",
    ),
)

_DISK_FULL = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk quota used up"}
_PASSING = {
    errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ENFILE,
    errno.EMFILE, errno.ECONNRESET, errno.EREMOTEIO,
}  # fmt: skip


def redact(text: str) -> str:
    """``text`` without credentials: the environment's, and what looks like a signed request."""
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 4:
            text = text.replace(value, "***")
    for pattern, replacement in _SECRET_PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def local_error(error: OSError, *, action: str, url: str) -> StoreError:
    """What ``error`` from the local file system means for the person who runs the job."""
    number = error.errno or 0
    found = _DISK_FULL.get(number) or os.strerror(number) if number else str(error)
    advice = "look at the file system, then run the same command again"
    if number in _DISK_FULL:
        advice = "free space or choose another output directory, then run the same command again"
    elif number == errno.EFBIG:
        advice = "raise the file size limit (ulimit -f) or use smaller parts"
    elif number == errno.ENOENT:
        advice = "check the path; nothing has been created there"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "give this user the right to use it, or choose another path"
    elif number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP):
        advice = "choose another path"
    return StoreError(f"cannot {action} {url}: {found}; {advice}", retryable=number in _PASSING)


def call_with_retries(operation: Callable[[], T], *, retries: int) -> T:
    """Calls ``operation``, and again up to ``retries`` times while its ``StoreError`` is retryable.

    Waits between tries with exponential back-off (0.2 s, 0.4 s, … at most 20 s) and jitter, so that
    many workers that lost the same server do not come back at the same instant.

    Raises:
        StoreError: the last one, unchanged; ``retryable`` still tells a passing cause.
    """
    for attempt in range(retries + 1):
        try:
            return operation()
        except StoreError as error:
            if not error.retryable or attempt == retries:
                raise
            longest_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**attempt)
            # An own generator: the job's global random state is not ours to move.
            delay_s = longest_s * random.Random().uniform(0.5, 1.0)
            logger.warning(
                "try %d of %d failed, next in %.1f s: %s", attempt + 1, retries + 1, delay_s, error
            )
            time.sleep(delay_s)
    raise AssertionError("unreachable: the last try returns or raises")
