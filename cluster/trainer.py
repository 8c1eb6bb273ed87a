"""Training workers under Ray Train: started, watched, started again, stopped in time.

Ray Train makes the processes and the process group and starts all of them again when one is lost.
Where they go on from is not its business: workers look for the newest checkpoint in the run's
output, so a restart, a resume and a second run of the command are the same thing. So is a group of
another size, if the run may have one: Ray Train counts the workers that the machines have room for
before it starts them, and every minute while they train.
"""

import concurrent.futures
import logging
import secrets
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.torch import TorchConfig

# Ray 2.60 swaps these in for those of its first version when it is imported, which no checker sees.
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from cluster.train_hub import drain_reports, start_train_hub
from cluster.train_work import TrainWork
from cluster.train_worker import run_name, train_worker
from sdxl_core.contract.errors import JobError

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_HOW_TO_GO_ON = "The newest checkpoint stays; the same command goes on from there"


def train_on_cluster(work: TrainWork, on_report: Callable[[dict[str, float]], None]) -> None:
    """Runs the workers until the run is finished.

    Args:
        work: the run.
        on_report: gets every report of the workers, with ``step``.

    Raises:
        JobError: the run cannot go on.
        KeyboardInterrupt: it was asked to stop, and has taken a checkpoint.
    """
    hub_name = f"{run_name(work)}-{secrets.token_hex(4)}"
    hub = start_train_hub(hub_name)
    # A thread: the main one stays free for signals, which Ray Train would take for an abort.
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="ray-train")
    with tempfile.TemporaryDirectory(prefix="sdxl-train-", ignore_cleanup_errors=True) as folder:
        running = pool.submit(_trainer(work, hub_name, folder).fit)
        try:
            _watch(running, hub, on_report, deadline_s=None)
        except KeyboardInterrupt:
            logger.warning("asked to stop: a checkpoint is taken first")
            ray.get(hub.request_stop.remote())
            _watch(running, hub, on_report, deadline_s=work.stop_grace_s)
            raise
        finally:
            pool.shutdown(wait=False)
        _raise_what_happened(running, hub)


def _trainer(work: TrainWork, hub_name: str, folder: str) -> TorchTrainer:
    on_gpu = work.device == "cuda"
    environment = {"OMP_NUM_THREADS": str(work.num_threads)}
    if not on_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    return TorchTrainer(
        train_worker,
        train_loop_config={"work": work, "hub": hub_name},
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(work.min_workers, work.num_workers)
            if work.min_workers < work.num_workers
            else work.num_workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": work.cpus_per_worker, **({"GPU": 1} if on_gpu else {})},
        ),
        run_config=RunConfig(
            # Its own files are of no use to us: no checkpoint goes through Ray Train.
            name=hub_name,
            storage_path=folder,
            failure_config=FailureConfig(max_failures=work.max_failures),
            worker_runtime_env={"env_vars": environment},
        ),
    )


def _watch(
    running: "concurrent.futures.Future[Any]",
    hub: Any,
    on_report: Callable[[dict[str, float]], None],
    *,
    deadline_s: float | None,
) -> None:
    """Passes reports on until the workers have ended, or the deadline is over."""
    started = time.monotonic()
    while not running.done():
        for values in drain_reports(hub):
            on_report(values)
        if deadline_s is not None and time.monotonic() - started > deadline_s:
            logger.warning("no checkpoint within how.stop_grace_s=%g; the one before", deadline_s)
            return
        concurrent.futures.wait([running], timeout=_POLL_S)
    for values in drain_reports(hub):
        on_report(values)


def _raise_what_happened(running: "concurrent.futures.Future[Any]", hub: Any) -> None:
    fatal = ray.get(hub.fatal.remote())
    if fatal:
        raise JobError(f"{fatal}. {_HOW_TO_GO_ON}")
    try:
        running.result()
    except (TrainingFailedError, RayError) as error:
        raise JobError(
            f"the workers could not go on: {' '.join(str(error).split())[-1500:]}. {_HOW_TO_GO_ON}"
        ) from error
