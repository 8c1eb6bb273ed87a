"""What every training worker has to know about a run. Small and picklable: paths and numbers, and
the manifest's arrays; no weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from cluster.ingest import IngestWork
from cluster.tracking_services import ServiceName
from cluster.train_size import accumulated_passes
from cluster.train_validation import Validation
from cluster.zero import Precision
from sdxl_core.data.buckets import Bucket
from sdxl_core.data.holdout import HeldRow
from sdxl_core.nets.presets import ModelKind
from sdxl_core.training.autoencoder_network import AutoencoderSettings
from sdxl_core.training.lora import LoraSettings
from sdxl_core.training.optimizers import AdamWSettings, LearningRate
from sdxl_core.training.seeded_objective import Objective

Stage = Literal["base", "refiner", "vae"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holdout:
    """What is measured, and every how many steps.

    Args:
        rows: in order of bucket.
        every: steps from one measurement to the next.
    """

    rows: tuple[HeldRow, ...]
    every: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainWork:
    """One training run, from the point of view of its workers.

    Args:
        out: where checkpoints and reports go.
        fingerprint: of what is trained.
        stage: what is trained.
        kind: of the model.
        model: where the networks are: name, folder or file.
        variant: of its files, or None.
        is_fresh: train from random weights, drawn from ``seed``, instead of the model's.
        seed: of the fresh weights.
        prediction_type: goes into the checkpoint, for whoever samples with it.
        model_digest: of ``model``.
        ingest: which samples, in which order.
        lora: the adapter that is trained instead of the network's own weights, or None.
        flops_of_bucket: operations of training on one sample of each bucket, forward and backward.
        objective: what a diffusion network is trained for; None in the stage ``vae``.
        autoencoder: what an autoencoder is trained for; None in the others.
        num_steps: global batches in all.
        learning_rate: by step.
        adamw: the optimizer's constants.
        max_gradient_norm: gradients are scaled down to this norm.
        ema_decay: most of the running mean that an update keeps.
        precision: of the trained network.
        frozen_precision: of text encoders and autoencoder.
        zero_stage: 1, 2 or 3.
        offload_optimizer: keep the optimizer's state in the memory of the host.
        activation_checkpointing: compute activations again in the backward pass, to save memory.
        channels_last: memory layout of the network.
        compile: run the network through ``torch.compile``.
        device: ``cpu`` or ``cuda``.
        num_threads: torch threads of each worker on the CPU.
        num_encoders: actors that encode pictures and captions; 0: the workers do.
        min_workers: the fewest that it may have; as many as ``num_workers`` if it is no range.
        micro_batch_size: rows of one forward pass; 0: a worker's whole share of the batch.
        cpus_per_worker: that each reserves.
        report_every: steps from report to report.
        checkpoint_every: steps from checkpoint to checkpoint.
        keep: checkpoints that stay.
        max_skipped_in_row: the run stops after so many.
        resume_from: URL of one checkpoint to begin from; "" for the newest one in ``out``.
        max_failures: times that the workers are started again.
        tensorboard: write TensorBoard's files.
        trackers: services that are told as well.
        validation: prompts that are rendered now and then, or None.
        holdout: samples whose loss is measured now and then, or None.
        stop_grace_s: how long a request to stop may take.
    """

    out: str
    fingerprint: str
    stage: Stage
    kind: ModelKind
    model: str
    variant: str | None
    is_fresh: bool
    seed: int
    prediction_type: Literal["epsilon", "v_prediction"]
    model_digest: str
    ingest: IngestWork
    lora: LoraSettings | None
    flops_of_bucket: Mapping[Bucket, float]
    objective: Objective | None
    autoencoder: AutoencoderSettings | None
    num_steps: int
    learning_rate: LearningRate
    adamw: AdamWSettings
    max_gradient_norm: float
    ema_decay: float
    precision: Precision
    frozen_precision: Precision
    zero_stage: int
    offload_optimizer: bool
    activation_checkpointing: bool
    channels_last: bool
    compile: bool
    device: str
    num_threads: int
    num_encoders: int
    min_workers: int
    micro_batch_size: int
    cpus_per_worker: float
    report_every: int
    checkpoint_every: int
    keep: int
    max_skipped_in_row: int
    resume_from: str
    max_failures: int
    tensorboard: bool
    trackers: tuple[ServiceName, ...]
    validation: Validation | None
    holdout: Holdout | None
    stop_grace_s: float

    @property
    def num_workers(self) -> int:
        """Workers of the run; before it has begun, the most that it may have."""
        return self.ingest.world_size

    def for_workers(self, num_workers: int) -> "TrainWork":
        """The same run by workers of this number, who share each global batch evenly.

        Raises:
            ConfigError: they cannot.
        """
        ingest = dataclasses.replace(
            self.ingest,
            world_size=num_workers,
            num_accumulated=accumulated_passes(
                self.ingest.plan.global_batch_size, num_workers, self.micro_batch_size
            ),
        )
        return dataclasses.replace(self, ingest=ingest)

    def checkpoint_model(self) -> dict[str, Any]:
        """What a checkpoint says of the model that it belongs to."""
        lora = self.lora and {"rank": self.lora.rank, "alpha": self.lora.used_alpha}
        return {
            "network": "vae" if self.stage == "vae" else "unet",
            "kind": self.kind,
            "path": self.model,
            "variant": self.variant,
            "digest": self.model_digest,
            "prediction_type": self.prediction_type,
            "zero_terminal_snr": self.objective is not None and self.objective.zero_terminal_snr,
            "lora": lora,
        }
