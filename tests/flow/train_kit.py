"""Runs of ``sdxl train`` for tests: settings, the command, what a run left, the undisturbed run."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from cluster.resources import ClusterSize
from jobs.train_config import TrainConfig, TrainHow
from jobs.train_start import start
from sdxl_core.contract.config import to_toml
from sdxl_core.storage.stores import open_store
from sdxl_core.training.checkpoint_store import CheckpointRecord, committed_steps, read_record
from tests.cluster.train_group import run_group
from tests.cluster.train_here import train_here


def settings(samples: str, out: str | Path, model: str, **more: Any) -> TrainConfig:
    how = {"workers": 2, "checkpoint_every": 2, "report_every": 1, "retries": 3}
    how |= {"max_failures": 20, "tensorboard": False, "device": "cpu"} | more.pop("how", {})
    values: dict[str, Any] = {"batch": 4, "learning_rate": 1e-3, "ema_decay": 0.5}
    values |= {"any_latents": True, "dtype": "float32", "export": "none"} | more
    return TrainConfig(samples=samples, out=str(out), model=model, how=TrainHow(**how), **values)


def command(config: TrainConfig, recipe: Path) -> list[str]:
    """The command with these settings, for another process."""
    recipe.write_text(to_toml(config))
    where = [config.samples, config.out, "--recipe", str(recipe)]
    return [sys.executable, "-m", "jobs", "train", *where]


def train_straight(folder: Path, config: TrainConfig) -> None:
    work = start(config, ClusterSize(num_cpus=4.0, num_gpus=0.0, memory_bytes=1e9)).work
    train_here(dataclasses.replace(work, out=str(folder), num_encoders=0))


def undisturbed(config: TrainConfig, folder: Path) -> Path:
    """The output of a run of the same settings that nothing happened to."""
    folder.mkdir()
    world_size = config.how.workers
    run_group(train_straight, world_size=world_size, folder=folder, arguments=(config,))
    return folder


def newest(out: str | Path) -> CheckpointRecord:
    store = open_store(out)
    return read_record(store, committed_steps(store)[-1])


def newest_step(out: str | Path) -> int:
    return max(committed_steps(open_store(out)), default=0)


def state_hashes(out: str | Path) -> list[str]:
    """Of the files of the newest checkpoint: all weights, moments and running means."""
    return [entry.sha256 for entry in newest(out).files]


def reports(out: str | Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
