"""A training run of a micro model, as the job would describe it, for tests without Ray."""

from pathlib import Path
from typing import Any

from cluster.ingest import IngestWork
from cluster.train_work import TrainWork
from sdxl_core.data.manifest import manifest_of
from sdxl_core.data.plan import PlanSettings
from sdxl_core.nets.flops import unet_flops
from sdxl_core.nets.weights import model_identity
from sdxl_core.training.conditions import ConditionDropout
from sdxl_core.training.optimizers import AdamWSettings, LearningRate
from sdxl_core.training.seeded_batches import SampleView
from sdxl_core.training.seeded_objective import Objective


def train_work(samples: str, model: str, out: Path, **more: Any) -> TrainWork:
    """One worker, two passes of two samples a step, micro-conditions dropped now and then."""
    preset, digest = model_identity(model)
    manifest = manifest_of([samples])
    values: dict[str, Any] = {
        "out": str(out),
        "fingerprint": "micro",
        "stage": preset.kind,
        "kind": preset.kind,
        "model": model,
        "variant": None,
        "is_fresh": False,
        "seed": 0,
        "prediction_type": "epsilon",
        "model_digest": digest,
        "ingest": IngestWork(
            manifest=manifest,
            plan=PlanSettings(seed=0, global_batch_size=4),
            batch_multiple=1,
            view=SampleView(
                run_seed=0,
                pixels="latents",
                texts="live",
                with_aesthetic=preset.kind == "refiner",
            ),
            world_size=1,
            num_accumulated=2,
        ),
        "lora": None,
        "flops_of_bucket": {bucket: unet_flops(preset, *bucket) for bucket in manifest.buckets},
        "objective": Objective(
            timesteps=(0, 1000 if preset.kind == "base" else 200),
            dropout=ConditionDropout(text=0.3, crop=0.3, last_numbers=0.3),
        ),
        "autoencoder": None,
        "num_steps": 2,
        "learning_rate": LearningRate(peak=1e-3),
        "adamw": AdamWSettings(),
        "max_gradient_norm": 1.0,
        "ema_decay": 0.5,
        "precision": "bfloat16",
        "frozen_precision": "bfloat16",
        "zero_stage": 2,
        "offload_optimizer": False,
        "activation_checkpointing": False,
        "channels_last": False,
        "compile": False,
        "device": "cpu",
        "num_threads": 1,
        "num_encoders": 0,
        "min_workers": 1,
        "micro_batch_size": 2,
        "cpus_per_worker": 1.0,
        "report_every": 1,
        "checkpoint_every": 1,
        "keep": 3,
        "max_skipped_in_row": 5,
        "resume_from": "",
        "max_failures": 0,
        "tensorboard": True,
        "trackers": (),
        "validation": None,
        "holdout": None,
        "stop_grace_s": 10.0,
    }
    return TrainWork(**values | more)
