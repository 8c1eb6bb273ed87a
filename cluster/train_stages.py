"""What is trained, and what a batch of samples says of it: one diffusion network, or an autoencoder
beside its discriminator. The loop does not know which."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from cluster.train_meter import NUM_BANDS, Meter, peak_flops_per_s
from cluster.train_networks import load_autoencoder, load_frozen, load_trained
from cluster.train_work import TrainWork
from cluster.work import DTYPES
from cluster.zero import ZeroEngine
from sdxl_core.training.autoencoder_network import (
    LOSS_PARTS,
    losses_of_pictures,
    pictures_of,
)
from sdxl_core.training.autoencoder_stage import AutoencoderObjective
from sdxl_core.training.conditions import ConditionDropout
from sdxl_core.training.frozen_parts import FrozenParts
from sdxl_core.training.perceptual import PerceptualDistance
from sdxl_core.training.seeded_batches import SampleBatch
from sdxl_core.training.seeded_objective import Objective, SampleLosses, losses_of_samples

if TYPE_CHECKING:  # its library is imported by those who measure
    from sdxl_core.nets.inception import InceptionFeatures

LossesOf = Callable[[ZeroEngine, SampleBatch, int], SampleLosses]
"""From the engine, samples, and global batches done before: the samples' losses."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainStage:
    """What a worker trains.

    Args:
        network: float32 on the CPU, the same on all workers.
        losses_of: under the run's objective.
        held_losses_of: the same for samples that are measured only: nothing is dropped, and no
            discriminator is asked.
        frozen: the networks that samples go through; None where there are none.
        picture_features: from uint8 pictures (B, 3, H, W) to the features (B, D) that rFID compares
            held-out pictures by; None where it is not measured.
    """

    network: nn.Module
    losses_of: LossesOf
    held_losses_of: LossesOf
    frozen: FrozenParts | None
    picture_features: "InceptionFeatures | None" = None


def make_stage(work: TrainWork, device: str) -> TrainStage:
    """Loads what the run needs on this worker.

    Args:
        work: the run.
        device: of this worker.

    Raises:
        WeightsError: the model's files cannot be read.
    """
    if work.autoencoder is not None:
        return _autoencoder_stage(work, device)
    # Held-out samples are read, and encoded, by the workers themselves.
    encodes = not work.num_encoders or work.holdout is not None
    frozen = load_frozen(work, device, encodes=encodes)
    assert work.objective is not None
    whole = dataclasses.replace(work.objective, dropout=ConditionDropout(text=0.0))
    return TrainStage(
        network=load_trained(work),
        losses_of=_diffusion_losses(work, work.objective, frozen, device),
        held_losses_of=_diffusion_losses(work, whole, frozen, device),
        frozen=frozen,
    )


def _diffusion_losses(
    work: TrainWork, objective: Objective, frozen: FrozenParts, device: str
) -> LossesOf:
    tables = objective.tables(device)

    def losses_of(engine: ZeroEngine, samples: SampleBatch, _step: int) -> SampleLosses:
        return losses_of_samples(
            engine.module,
            frozen.batch(samples),
            samples.seeds,
            objective=objective,
            tables=tables,
            empty=frozen.empty,
            text_1_width=frozen.text_1_width,
            network_dtype=DTYPES[work.precision],
        )

    return losses_of


def _autoencoder_stage(work: TrainWork, device: str) -> TrainStage:
    assert work.autoencoder is not None
    objective, perceptual = work.autoencoder.objective, work.autoencoder.perceptual().to(device)
    features = work.autoencoder.picture_features() if work.holdout is not None else None
    return TrainStage(
        network=load_autoencoder(work),
        losses_of=_picture_losses(objective, perceptual, device),
        held_losses_of=_picture_losses(
            dataclasses.replace(objective, adversarial_weight=0.0), perceptual, device
        ),
        frozen=None,
        picture_features=None if features is None else features.to(device),
    )


def _picture_losses(
    objective: AutoencoderObjective, perceptual: PerceptualDistance, device: str
) -> LossesOf:
    def losses_of(engine: ZeroEngine, samples: SampleBatch, step: int) -> SampleLosses:
        return losses_of_pictures(
            engine.module,
            pictures_of(samples.images_BHWC, device),
            samples.seeds,
            objective=objective,
            step=step,
            perceptual=perceptual,
        )

    return losses_of


def make_meter(work: TrainWork, device: str) -> Meter:
    """The meter of a worker; it knows the exact work of every bucket."""
    is_diffusion = work.autoencoder is None
    name = torch.cuda.get_device_name() if work.device == "cuda" else ""
    return Meter(
        work.ingest.manifest.buckets,
        work.flops_of_bucket,
        device=device,
        peak_flops_per_s=peak_flops_per_s(name),
        num_bands=NUM_BANDS if is_diffusion else 1,
        part_names=() if is_diffusion else LOSS_PARTS,
    )
