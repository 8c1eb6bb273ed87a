"""Trains a base or a refiner on prepared samples, exactly resumable.

Left: samples datasets. Right: checkpoints, reports, and at the end the trained model as a diffusers
folder, or the trained adapter. A run that was killed goes on from its newest checkpoint when the
same command is given again; one that is finished does nothing, or goes on if it is given more
steps. To run it:

    sdxl train out/samples out/run --steps 200 --batch 16 --learning-rate 1e-4
"""

import dataclasses
import json
import logging
import math
import time

from cluster.pools import cluster_size
from cluster.session import ray_session
from cluster.train_meter import report_line
from cluster.trainer import train_on_cluster
from jobs.registry import Plan
from jobs.train_config import TrainConfig, TrainSummary
from jobs.train_preview import preview
from jobs.train_start import open_output, start
from sdxl_core.contract.config import to_toml
from sdxl_core.contract.errors import JobError
from sdxl_core.storage.parts import DatasetInfo, write_run_files, write_summary
from sdxl_core.storage.stores import Store
from sdxl_core.training.checkpoint_store import (
    CheckpointRecord,
    find_checkpoint,
    step_folder,
)

logger = logging.getLogger(__name__)

__all__ = ["TrainConfig", "TrainSummary", "plan", "run"]

SCHEMA_NAME, SCHEMA_VERSION = "training", 1
MODEL_FOLDER, ADAPTER_FOLDER = "model", "lora"
# Of which step the export is, and which weights: a kill may have come before it was made anew.
EXPORT_FILE = "_EXPORT.json"
_NO_PROGRESS_TIMEOUT_S = 600.0


def run(config: TrainConfig) -> TrainSummary:
    """Trains until ``config.steps``.

    Raises:
        ConfigError: settings that cannot be, or other settings than those ``out`` was begun with.
        SchemaError: the samples are not a finished dataset.
        ResourceError: the workers do not fit on the cluster.
        JobError: the run had to stop; the newest checkpoint stays, a rerun goes on from there.
    """
    started = time.monotonic()
    store = open_output(config)
    last_report: dict[str, float] = {}
    with ray_session(config.how.address, no_progress_timeout_s=_NO_PROGRESS_TIMEOUT_S):
        work = start(config, cluster_size()).work
        before = find_checkpoint(store, work.fingerprint)
        write_run_files(
            store, to_toml(config), DatasetInfo(name=SCHEMA_NAME, version=SCHEMA_VERSION)
        )

        def on_report(values: dict[str, float]) -> None:
            last_report.update(values)
            logger.info("%s", report_line(int(values["step"]), config.steps, values))

        if before is None or before.step < config.steps:
            train_on_cluster(work, on_report)
        else:
            logger.info("%s: finished before, nothing to train", config.out)
    record = find_checkpoint(store, work.fingerprint)
    if record is None or record.step < config.steps:
        reached = "none" if record is None else f"step {record.step}"
        raise JobError(f"{config.out}: the workers ended, but the newest checkpoint is {reached}")
    written = _export(config, store, record)
    summary = TrainSummary(
        out=config.out,
        step=record.step,
        num_steps_now=record.step - (0 if before is None else before.step),
        num_samples=record.num_samples,
        num_skipped=record.num_skipped,
        loss=_finite(last_report.get("loss")),
        seconds=round(time.monotonic() - started, 3),
        fingerprint=work.fingerprint,
        checkpoint=store.join(step_folder(record.step)),
        model=None if config.lora_rank else written,
        adapter=written if config.lora_rank else None,
    )
    if summary.num_steps_now:
        write_summary(store, dataclasses.asdict(summary))
    return summary


def plan(config: TrainConfig) -> Plan:
    """Says what ``run`` would do; looks at the samples, writes nothing."""
    open_output(config)
    with ray_session(config.how.address, no_progress_timeout_s=_NO_PROGRESS_TIMEOUT_S):
        return preview(start(config, cluster_size()))


def _export(config: TrainConfig, store: Store, record: CheckpointRecord) -> str | None:
    """What was trained, as others read it; made anew if it is not of this step and these weights.

    A model as a diffusers folder, an adapter as two files.
    """
    if config.export == "none":
        return None
    from sdxl_core.nets.weights import export_model
    from sdxl_core.training.checkpoint_export import model_of_checkpoint
    from sdxl_core.training.lora_export import DIFFUSERS_FILE, export_lora

    folder, last_file = MODEL_FOLDER, "model_index.json"
    if config.lora_rank:
        folder, last_file = ADAPTER_FOLDER, DIFFUSERS_FILE
    url, checkpoint = store.join(folder), store.join(step_folder(record.step))
    mark = json.dumps({"step": record.step, "weights": config.export}).encode()
    is_there = store.exists(f"{folder}/{last_file}") and store.exists(EXPORT_FILE)
    if is_there and store.read_bytes(EXPORT_FILE) == mark:
        return url
    if config.lora_rank:
        export_lora(checkpoint, url, weights=config.export)
    else:
        export_model(model_of_checkpoint(checkpoint, weights=config.export), url)
    store.write_bytes(EXPORT_FILE, mark)
    return url


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
