"""What the jobs share of Ray Data: pools of workers, and the reports that come out at the driver.

A job sends numbers of parts in and gets one small row for each out: the part, a message if the job
cannot go on, and counts as JSON.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError, RayTaskError

from cluster.resources import ClusterSize
from sdxl_core.contract.errors import JobError, SdxlError

_HOW_TO_GO_ON = "What is committed stays; the same command goes on from there"


def cluster_size() -> ClusterSize:
    """What the cluster that Ray is connected to has."""
    total = ray.cluster_resources()
    return ClusterSize(
        num_cpus=total.get("CPU", 0.0),
        num_gpus=total.get("GPU", 0.0),
        memory_bytes=total.get("memory", 0.0),
        num_nodes=sum(key.startswith("node:") for key in total),
        nodes=tuple(
            (node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
            for node in ray.nodes()
            if node["Alive"]
        ),
    )


def number_blocks(parts: Sequence[int], **columns: Sequence[int]) -> ray.data.Dataset:
    """A dataset with one block of one row for each part: ``part`` and other numbers about it."""
    table = pa.table({"part": parts, **columns})
    blocks: list[Any] = [table.slice(row, 1) for row in range(table.num_rows)]
    dataset: ray.data.Dataset = ray.data.from_blocks(blocks)
    return dataset


def add_actors(
    dataset: ray.data.Dataset,
    worker: type,
    arguments: list[Any],
    *,
    size: int,
    num_cpus: float,
    num_gpus: float,
    num_in_flight: int,
) -> ray.data.Dataset:
    """One pool of actors. Its size is fixed: Ray's autoscaler would feed the fast pool first."""
    return dataset.map_batches(
        worker,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        compute=ray.data.ActorPoolStrategy(
            size=size,
            max_tasks_in_flight_per_actor=num_in_flight + 1,
            max_concurrent_calls_per_actor=num_in_flight,
            enable_true_multi_threading=True,
        ),
    )


def add_tasks(
    dataset: ray.data.Dataset, function: Callable[..., pa.Table], arguments: list[Any], *, size: int
) -> ray.data.Dataset:
    """At most ``size`` tasks at a time, a core each; ``function`` gets a block, then arguments."""
    return dataset.map_batches(
        function,
        fn_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=size),
    )


def iter_reports(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Runs the dataset; yields ``part`` and the counts of each report as it comes.

    Raises:
        JobError: if the job cannot go on; the parts committed so far stay.
    """
    reports = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for some in _explained(iter(reports)):
        for row in cast(pa.Table, some).to_pylist():
            if row["fatal"]:
                raise JobError(f"{row['fatal']}. {_HOW_TO_GO_ON}")
            yield {"part": row["part"], **json.loads(row["record"])}


def get(reference: Any) -> Any:
    """The result of a task; its error, if it is one of ours, as it was raised there.

    Raises:
        JobError: if the task failed in another way.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, SdxlError):
            raise error.cause from None  # its message is for people; the remote trace is not
        raise JobError(f"a task failed: {_first_line(error.cause)}. {_HOW_TO_GO_ON}") from error
    except RayError as error:
        raise JobError(f"Ray could not go on: {_first_line(error)}. {_HOW_TO_GO_ON}") from error


def _explained(reports: Iterator[Any]) -> Iterator[Any]:
    """Passes reports on; what Ray itself raises becomes an error that says what to do."""
    while True:
        try:
            some = next(reports)
        except StopIteration:
            return
        except ExecutionTimeoutError as error:
            raise JobError(
                f"nothing has moved for how.no_progress_timeout_s: {_first_line(error)}. Look at "
                f"`ray status` for workers that cannot start. {_HOW_TO_GO_ON}"
            ) from error
        except (RayError, SystemException) as error:
            raise JobError(
                f"Ray could not go on: {type(error).__name__}: {_first_line(error)}. The workers' "
                f"logs are in /tmp/ray/session_latest/logs of their nodes. {_HOW_TO_GO_ON}"
            ) from error
        yield some


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
