"""Two trainings have one fingerprint when and only when they train the same."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.train_config import TrainConfig
from jobs.train_identity import scheduler_digest, training_fingerprint
from jobs.train_vae import AutoencoderOptions
from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.model import trained_as
from sdxl_core.nets.weights import export_model, load_model
from tests.micro_models import write_models


def fingerprint_of(vgg: Path, channels: Path, stage: Any = "vae") -> str:
    options = AutoencoderOptions(lpips_vgg=str(vgg), lpips_channels=str(channels))
    config = TrainConfig(samples="s", out="o", stage=stage, vae=options)
    return training_fingerprint(config, samples="s", model="m", scheduler="c")


def test_files_of_the_perceptual_distance_count_by_content_and_not_by_place(tmp_path: Path) -> None:
    vgg, moved, other = tmp_path / "vgg.pth", tmp_path / "moved.pth", tmp_path / "other.pth"
    vgg.write_bytes(b"a")
    moved.write_bytes(b"a")
    other.write_bytes(b"b")
    assert fingerprint_of(vgg, other) == fingerprint_of(moved, other)
    found = {fingerprint_of(vgg, other), fingerprint_of(other, vgg), fingerprint_of(vgg, vgg)}
    assert len(found) == 3


def test_a_file_of_the_perceptual_distance_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "vgg.pth").write_bytes(b"a")
    message = r"vae\.lpips_channels: .*none\.pth cannot be read: No such file.* on every worker"
    with pytest.raises(ConfigError, match=message):
        fingerprint_of(tmp_path / "vgg.pth", tmp_path / "none.pth")


def test_the_schedule_of_the_model_counts_and_its_layout_does_not(tmp_path: Path) -> None:
    folder = Path(write_models(tmp_path).base)
    model = load_model(folder)
    single = tmp_path / "model.safetensors"
    export_model(model, single, layout="single-file")
    assert scheduler_digest(load_model(single, components=())) == scheduler_digest(model)
    velocity = trained_as(model, prediction_type="v_prediction", zero_terminal_snr=False)
    assert scheduler_digest(velocity) != scheduler_digest(model)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"timestep_spacing": "trailing"}))
    changed = load_model(folder, components=())
    assert scheduler_digest(changed) != scheduler_digest(model)
    assert scheduler_digest(dataclasses.replace(changed, timestep_spacing="leading")) == (
        scheduler_digest(model)
    )
    config = TrainConfig(samples="s", out="o")
    found = {
        training_fingerprint(config, samples="s", model="m", scheduler=scheduler_digest(one))
        for one in (model, velocity, changed)
    }
    assert len(found) == 3
