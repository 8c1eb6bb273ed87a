"""The run itself: Ray Data moves parts through the pools, the driver counts what comes out.

    part numbers -> EncodePrompts -> Denoise (base) -> Denoise (refiner) -> WriteImages -> counts

Nothing but part numbers goes in and counts come out at the driver.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from cluster.denoise import Denoise
from cluster.encode_prompts import EncodePrompts
from cluster.messages import start_message
from cluster.resources import ENCODER_CPUS, WRITER_CPUS, ClusterSize, PoolPlan
from cluster.work import GenerateWork
from cluster.write_images import WriteImages
from sdxl_core.contract.errors import JobError

_HOW_TO_GO_ON = "What is committed stays; the same command goes on from there"


def cluster_size() -> ClusterSize:
    """What the cluster that Ray is connected to has."""
    total = ray.cluster_resources()
    return ClusterSize(
        num_cpus=total.get("CPU", 0.0),
        num_gpus=total.get("GPU", 0.0),
        memory_bytes=total.get("memory", 0.0),
        num_nodes=sum(key.startswith("node:") for key in total),
    )


def run_parts(
    work: GenerateWork, open_parts: Sequence[int], pools: PoolPlan, hub: Any, *, num_in_flight: int
) -> Iterator[dict[str, Any]]:
    """Makes the open parts; yields ``num_rows``, ``num_by_status``, ``num_by_reason`` of each.

    Args:
        work: The run.
        open_parts: Parts to make, in the order in which they are begun.
        pools: Pool sizes.
        hub: Telemetry hub.
        num_in_flight: Parts that one denoiser works on at the same time.

    Raises:
        JobError: if the job cannot go on; the parts committed so far stay.
    """
    dataset = ray.data.from_blocks([start_message(part) for part in open_parts])
    encoder_gpus, denoiser_gpus, writer_gpus = pools.gpus
    dataset = _stage(
        dataset,
        EncodePrompts,
        [work, hub],
        size=pools.num_encoders,
        num_cpus=ENCODER_CPUS,
        num_gpus=encoder_gpus,
        num_in_flight=2,
    )
    stages = [("base",), ("refiner",)] if pools.num_refiners else [tuple(work.slots)]
    for names, size in zip(stages, [pools.num_denoisers, pools.num_refiners], strict=False):
        dataset = _stage(
            dataset,
            Denoise,
            [work, hub, names],
            size=size,
            num_cpus=pools.denoiser_cpus,
            num_gpus=denoiser_gpus,
            num_in_flight=num_in_flight,
        )
    dataset = _stage(
        dataset,
        WriteImages,
        [work, hub],
        size=pools.num_writers,
        num_cpus=WRITER_CPUS,
        num_gpus=writer_gpus,
        num_in_flight=2,
    )
    reports = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    for report in _explained(iter(reports)):
        for row in cast(pa.Table, report).to_pylist():
            if row["fatal"]:
                raise JobError(f"{row['fatal']}. {_HOW_TO_GO_ON}")
            yield {"part": row["part"], **json.loads(row["record"])}


def _explained(reports: Iterator[Any]) -> Iterator[Any]:
    """Passes reports on; what Ray itself raises becomes an error that says what to do."""
    while True:
        try:
            report = next(reports)
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
        yield report


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _stage(
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
