"""Encoders beside the training: actors that turn pictures and captions into what the UNet reads.

    gather task -> ``SampleBatch`` with pictures and captions
    encoder     -> the same with the autoencoder's moments and the text encoders' output
    worker      -> draws latents and noise, drops conditions, trains

Without them the training workers encode for themselves, on the devices and in the time that the
training has. What a worker gets is the same either way, to the bit on devices of one kind: each
forward pass's samples are encoded together.
"""

import dataclasses
from typing import Any

import ray
import torch

from cluster.resources import ENCODER_CPUS
from cluster.train_networks import load_frozen
from cluster.train_work import TrainWork
from sdxl_core.training.frozen_parts import encode_samples
from sdxl_core.training.seeded_batches import SampleBatch

# Tries of one batch when an encoder's process died; the encoder itself is started again and again.
_TASK_RETRIES = 3


class SampleEncoder:
    """Holds the frozen networks of a run.

    Args:
        work: the run.

    Raises:
        WeightsError: the model's files cannot be read.
    """

    def __init__(self, work: TrainWork) -> None:
        torch.set_num_threads(work.num_threads)
        alone = dataclasses.replace(work, validation=None)
        self._frozen = load_frozen(alone, work.device, encodes=True)

    def encode(self, samples: SampleBatch) -> SampleBatch:
        """The samples of one forward pass, encoded."""
        return encode_samples(self._frozen, samples)


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
