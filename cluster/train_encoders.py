"""Encoders beside the training: actors that turn pictures and captions into what the UNet reads.

    gather task -> ``SampleBatch`` with pictures and captions
    encoder     -> the same with the autoencoder's moments and the text encoders' output
    worker      -> draws latents and noise, drops conditions, trains

Without them the training workers encode for themselves, on the devices and in the time that the
training has. What a worker gets is the same either way, to the bit on devices of one kind: each
forward pass's samples are encoded together.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from cluster.failures import describe, ending_with_its_device
from cluster.resources import ENCODER_CPUS
from cluster.train_networks import load_frozen
from cluster.train_work import TrainWork
from sdxl_core.contract.errors import ResourceError, SdxlError
from sdxl_core.training.frozen_parts import FrozenParts, encode_samples
from sdxl_core.training.seeded_batches import SampleBatch

# Tries of one batch when an encoder's process died; the encoder itself is started again and again.
_TASK_RETRIES = 3
# Nobody needs so long to load two text encoders and an autoencoder; it may take as long to find out
# that there is no room for an encoder.
_START_TIMEOUT_S = 600.0


class SampleEncoder:
    """Holds the frozen networks of a run.

    Args:
        work: the run. A model that cannot be read is told of by the methods: Ray would only say
            that the actor has died.
    """

    def __init__(self, work: TrainWork) -> None:
        torch.set_num_threads(work.num_threads)
        alone = dataclasses.replace(work, validation=None)
        self._loaded: FrozenParts | SdxlError
        try:
            self._loaded = load_frozen(alone, work.device, encodes=True)
        except SdxlError as error:
            self._loaded = error

    def encode(self, samples: SampleBatch) -> SampleBatch:
        """The samples of one forward pass, encoded.

        Raises:
            WeightsError: the model's files could not be read.
            ResourceError: the device has too little memory for so many samples.
        """
        frozen = self._frozen()
        try:
            with ending_with_its_device():
                return encode_samples(frozen, samples)
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"how.encoders: an encoder has too little memory for {len(samples.ids)} samples at "
                f"a time ({describe(error)}). Use a smaller --how.micro-batch-size"
            ) from error

    def check(self) -> None:
        """Returns when there is something to encode with; raises as ``encode``."""
        self._frozen()

    def _frozen(self) -> FrozenParts:
        if isinstance(self._loaded, SdxlError):
            raise self._loaded
        return self._loaded


def start_encoders(work: TrainWork) -> list[Any]:
    """Starts the run's encoders; they end with this process.

    Each has a GPU of its own where there are any.
    """
    actor = ray.remote(SampleEncoder).options(
        num_cpus=ENCODER_CPUS,
        num_gpus=1 if work.device == "cuda" else 0,
        max_restarts=-1,
        max_task_retries=_TASK_RETRIES,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(work.num_threads)}},
    )
    return [actor.remote(work) for _ in range(work.num_encoders)]


def check_encoders(encoders: Sequence[Any], *, timeout_s: float = _START_TIMEOUT_S) -> None:
    """Waits until all encoders are there.

    Raises:
        ResourceError: some are not after ``timeout_s``: the cluster has no room for them.
        WeightsError: they cannot read the model.
    """
    checks = [encoder.check.remote() for encoder in encoders]
    ready, missing = ray.wait(checks, num_returns=max(1, len(checks)), timeout=timeout_s)
    try:
        ray.get(ready)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, SdxlError) else error) from error
    if missing:
        raise ResourceError(
            f"how.encoders: {len(missing)} of {len(checks)} encoders have not started within "
            f"{timeout_s:g} s: beside the workers, and what else runs on the cluster, there is no "
            "room for them. Use fewer encoders or workers"
        )
