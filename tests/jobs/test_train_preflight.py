"""What `sdxl train` refuses before it begins. No Ray; what must not be looked at is not there."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.resources import ClusterSize
from jobs.train_config import TrainConfig, TrainHow
from jobs.train_preview import preview
from jobs.train_start import open_output, start
from jobs.train_vae import AutoencoderOptions
from sdxl_core.contract.errors import ConfigError, ResourceError, SdxlError
from tests.cluster.train_samples import write_samples
from tests.micro_models import MicroModels, write_models

SIZE = ClusterSize(num_cpus=2.0, num_gpus=0.0, memory_bytes=1e9)
# With batches of 8 of the larger one, those of the smaller one are of 10.
BUCKETS = {(32, 48): 14, (32, 64): 14}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> MicroModels:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"validate": "p.csv", "how": TrainHow(zero=3)},
            r"validate: found p\.csv with --how\.zero 3, expected --how\.zero 1 or 2",
        ),
        (
            {"validate": "p.csv", "stage": "refiner"},
            r"validate: found p\.csv in the stage refiner, expected none",
        ),
        (
            {"batch": 12, "how": TrainHow(workers=4, micro_batch_size=2)},
            r"batch: found 12, which 4 workers x how\.micro_batch_size=2 .* a multiple of 8",
        ),
        ({"batch": 5, "how": TrainHow(workers=2)}, "found 5, which 2 workers cannot share"),
        (
            {"batch": 12, "how": TrainHow(workers=8, min_workers=3)},
            r"3 to 8 workers, of which 5, 7, 8 cannot share .* those that can are 3, 4, 6",
        ),
        (
            {"how": TrainHow(workers=2, min_workers=3)},
            r"how\.min_workers: found 3, but there are 2 workers at most",
        ),
        (
            {"stage": "vae", "vae": AutoencoderOptions(inception="fid.safetensors")},
            r"vae\.inception: found fid\.safetensors in the stage vae with --holdout 0",
        ),
        (
            {"holdout": 0.1, "vae": AutoencoderOptions(inception="fid.safetensors")},
            r"found fid\.safetensors in the stage base with .* expected --stage vae",
        ),
        (
            {
                "stage": "vae",
                "holdout": 0.1,
                "vae": AutoencoderOptions(inception="/nowhere/fid.safetensors"),
            },
            r"/nowhere/fid\.safetensors is no file; expected FID's Inception network",
        ),
        (
            {"stage": "vae", "holdout": 0.1, "vae": AutoencoderOptions(inception="fid.pth")},
            r"vae\.inception: fid\.pth: a pickle can run any code",
        ),
        (
            {"batch": 4, "how": TrainHow(workers=2, min_workers=1, encoders=1)},
            r"how\.encoders: found 1 with how\.min_workers=1, expected one of them",
        ),
        ({"how": TrainHow(trackers=("mlflow",))}, r"pip install 'sdxl-ray\[mlflow\]'"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_read_or_written(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=message):
        open_output(TrainConfig(samples=str(tmp_path / "nowhere"), out=str(out), **settings))
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 64, "how": TrainHow(micro_batch_size=3)}, "1 workers x how.micro_batch_size=3"),
        ({"how": TrainHow(workers=64, cpu_threads=1)}, "CPUs: 64 workers"),
    ],
)
def test_workers_that_do_not_fit_are_refused_before_model_and_samples_are_looked_at(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    nowhere = str(tmp_path / "nowhere")
    config = TrainConfig(samples=nowhere, model=nowhere, out=str(tmp_path / "out"), **settings)
    with pytest.raises((ConfigError, ResourceError), match=message):
        start(config, SIZE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"area_scaled_batches": True, "how": TrainHow(workers=4)},
            "a global batch of 10 samples cannot be shared by 4 workers",
        ),
        (
            {"area_scaled_batches": True, "how": TrainHow(workers=4, min_workers=4)},
            "a global batch of 10 samples cannot be shared by 4 workers",
        ),
        ({"batch_multiple": 3}, "global_batch_size: found 8, expected a multiple of 3"),
        ({"zero_terminal_snr": True}, "expected v_prediction"),
        ({"validate": "nowhere.csv"}, "nowhere.csv"),
        ({}, "holdout: found 0 of 56 samples"),
    ],
)
def test_what_samples_and_model_tell_is_refused_before_the_ids_of_all_samples_are_read(
    settings: dict[str, Any], message: str, models: MicroModels, tmp_path: Path
) -> None:
    """The share that sets nothing aside is found out by reading all ids: the last complaint."""
    samples = write_samples(tmp_path / "samples", model_digest="x", buckets=BUCKETS)
    values = {"any_latents": True, "holdout": 1e-12, "batch": 8} | settings
    config = TrainConfig(samples=samples, out=str(tmp_path / "o"), model=models.base, **values)
    with pytest.raises(SdxlError, match=message):
        start(config, SIZE)


def test_plan_says_who_encodes_what_and_what_it_costs(models: MicroModels, tmp_path: Path) -> None:
    for latents, encoders, told in (
        (False, 2, r"pictures and captions are encoded by encoders \(2 of them\): \d+\.\d% of"),
        (True, 1, r"captions are encoded by encoders \(1 of them\): \d+\.\d% of"),
        (True, 0, r"captions are encoded by the workers: \d+\.\d% of"),
    ):
        folder = tmp_path / f"{latents}-{encoders}"
        samples = write_samples(folder, model_digest="x", latents=latents)
        config = TrainConfig(
            samples=samples,
            out=str(tmp_path / "o"),
            model=models.base,
            any_latents=True,
            batch=4,
            how=TrainHow(encoders=encoders),
        )
        plan = preview(start(config, SIZE))
        assert any(re.match(told, line) for line in plan.lines), plan.lines
        assert plan.values["encoding_flops"] > 0


def test_rfid_of_one_picture_is_refused(models: MicroModels, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", model_digest="x", latents=False)
    inception = tmp_path / "fid.safetensors"
    inception.touch()
    config = TrainConfig(
        samples=samples,
        out=str(tmp_path / "o"),
        model=models.base,
        stage="vae",
        vae=AutoencoderOptions(inception=str(inception), discriminator_layers=2),
        holdout=0.3,
        holdout_samples=1,
        batch=4,
    )
    with pytest.raises(ConfigError, match=r"vae\.inception: found 1 picture to measure"):
        start(config, SIZE)
    two = dataclasses.replace(config, holdout_samples=2)
    without = dataclasses.replace(two, vae=AutoencoderOptions(discriminator_layers=2))
    for allowed, told in (
        (two, f"rFID is measured with {inception}"),
        (without, "their rFID is not: --vae.inception names no network"),
    ):
        assert any(told in line for line in preview(start(allowed, SIZE)).lines)
