"""The run itself: Ray Data moves parts through the pools, the driver counts what comes out.

    part numbers -> EncodePrompts -> Denoise (base) -> Denoise (refiner) -> WriteImages -> counts

Nothing but part numbers goes in and counts come out at the driver.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import ray.data

from cluster.denoise import Denoise
from cluster.encode_prompts import EncodePrompts
from cluster.messages import start_message
from cluster.pools import add_actors, iter_reports
from cluster.resources import ENCODER_CPUS, WRITER_CPUS, PoolPlan
from cluster.work import GenerateWork
from cluster.write_images import WriteImages


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
    dataset = add_actors(
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
        dataset = add_actors(
            dataset,
            Denoise,
            [work, hub, names],
            size=size,
            num_cpus=pools.denoiser_cpus,
            num_gpus=denoiser_gpus,
            num_in_flight=num_in_flight,
        )
    dataset = add_actors(
        dataset,
        WriteImages,
        [work, hub],
        size=pools.num_writers,
        num_cpus=WRITER_CPUS,
        num_gpus=writer_gpus,
        num_in_flight=2,
    )
    return iter_reports(dataset)
