"""A Ray cluster to run on: the one that is there, or one here for the length of a job."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

import ray
import ray.data

from cluster import failures
from sdxl_core.contract.errors import ResourceError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_session(address: str | None, *, no_progress_timeout_s: float) -> Iterator[None]:
    """Connects to ``address`` (or ``RAY_ADDRESS``), else starts Ray here and stops it at the end.

    Ray Data is set up for jobs: no bars of its own, no reordering surprises, and an error instead
    of a silent wait when nothing moves for ``no_progress_timeout_s``.

    Raises:
        ResourceError: if no cluster can be reached or started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield from _prepared(no_progress_timeout_s)
        return
    try:
        with _keeping_sigterm_handler():
            failures.try_twice(
                lambda: ray.init(
                    address=address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    include_dashboard=None if address else False,
                ),
                what="starting Ray",
                first_message="The current node timed out during startup",
                clean_up=ray.shutdown,
            )
    except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
        raise _unreachable(address, error) from error
    try:
        yield from _prepared(no_progress_timeout_s)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _keeping_sigterm_handler() -> Iterator[None]:
    """Ray puts its own handler in place of the command's, which says how to go on."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def _prepared(no_progress_timeout_s: float) -> Iterator[None]:
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = no_progress_timeout_s
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with ray.data.DataContext.current(context):
        yield


def _unreachable(address: str | None, error: Exception) -> ResourceError:
    found = " ".join(str(error).split())[:300]
    if address:
        return ResourceError(
            f"Ray at {address} cannot be reached: {found}. Check the address and that the cluster "
            "is up (`ray status`), or leave it away to run on this machine"
        )
    return ResourceError(
        f"Ray does not start on this machine: {found}. Look for leftovers of another cluster "
        "(`ray stop`), a full disk, or too little memory"
    )
