"""Adapters, encoders, autoencoder and held-out samples as whole jobs: the bits of no Ray at all."""

from pathlib import Path
from typing import Any

import pytest

from jobs.export import ExportConfig
from jobs.export import run as export
from jobs.train import run
from jobs.train_config import TrainConfig
from jobs.train_vae import AutoencoderOptions
from sdxl_core.nets.weights import load_model
from sdxl_core.training.lora_export import DIFFUSERS_FILE, KOHYA_FILE
from tests.cluster.train_samples import REFINER_BUCKETS, write_samples
from tests.flow.train_kit import reports, settings, state_hashes, undisturbed
from tests.micro_models import MicroModels
from tests.random_inception import write_random_inception

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_STEPS = 4
# Numbers of a report that are not of the clock or the machine.
_COMPARED = (
    "step",
    "loss",
    "grad_norm",
    "psnr_db",
    "ssim",
    "holdout/loss",
    "holdout/psnr_db",
    "holdout/rfid",
)


def short_run(samples: str, out: Path, model: str, **more: Any) -> TrainConfig:
    """One worker, a third of the samples held out, which are measured twice."""
    how = {"workers": 1, "validate_every": 2}
    values = {"steps": NUM_STEPS, "holdout": 0.3, "holdout_samples": 5, "how": how}
    return settings(samples, out, model, **values | more)


def compared(out: Path) -> list[dict[str, Any]]:
    return [{n: line[n] for n in _COMPARED if n in line} for line in reports(out)]


def assert_same_without_ray(config: TrainConfig, folder: Path) -> None:
    straight = undisturbed(config, folder)
    assert compared(Path(config.out)) == compared(straight)
    assert state_hashes(config.out) == state_hashes(straight)


def changed_networks(before: str, after: str) -> set[str]:
    """Names of the networks that have other weights than before."""
    old, new = load_model(before).networks, load_model(after).networks
    assert old.keys() == new.keys()
    return {
        name
        for name, network in old.items()
        for key, tensor in network.state_dict().items()
        if not tensor.equal(new[name].state_dict()[key])
    }


def test_adapter_and_held_out_samples_as_a_job(
    local_ray: None, models: MicroModels, tmp_path: Path
) -> None:
    samples = write_samples(tmp_path / "samples", model_digest="x")
    config = short_run(samples, tmp_path / "out", models.base, lora_rank=2, export="ema")
    summary = run(config)
    assert (summary.step, summary.num_skipped) == (NUM_STEPS, 0)
    assert_same_without_ray(config, tmp_path / "straight")
    held = [line["step"] for line in reports(tmp_path / "out") if "holdout/loss" in line]
    assert held == [2, 4]
    written = {path.name for path in (tmp_path / "out/lora").iterdir()}
    assert written >= {DIFFUSERS_FILE, KOHYA_FILE}
    merged = tmp_path / "merged"
    export(ExportConfig(checkpoint=config.out, out=str(merged), layout="diffusers"))
    assert changed_networks(models.base, str(merged)) == {"unet"}


def test_refiner_from_pictures_that_an_encoder_beside_the_worker_sees_as_a_job(
    local_ray: None, models: MicroModels, tmp_path: Path
) -> None:
    """Without Ray the worker sees them itself; here it has neither an autoencoder nor captions to
    encode, only the empty one."""
    samples = write_samples(
        tmp_path / "samples", model_digest="x", latents=False, buckets=REFINER_BUCKETS
    )
    config = settings(
        samples,
        tmp_path / "out",
        models.refiner,
        stage="refiner",
        steps=NUM_STEPS,
        drop_text=0.5,
        how={"workers": 1, "encoders": 1},
    )
    assert run(config).num_skipped == 0
    assert_same_without_ray(config, tmp_path / "straight")


def test_autoencoder_and_held_out_pictures_as_a_job(
    local_ray: None, models: MicroModels, tmp_path: Path
) -> None:
    samples = write_samples(tmp_path / "samples", model_digest="x", latents=False)
    vae = AutoencoderOptions(
        discriminator_after=2,
        discriminator_channels=8,
        discriminator_layers=2,
        inception=str(write_random_inception(tmp_path / "fid.safetensors")),
    )
    config = short_run(samples, tmp_path / "out", models.base, stage="vae", vae=vae, export="ema")
    summary = run(config)
    assert (summary.step, summary.num_skipped) == (NUM_STEPS, 0)
    assert_same_without_ray(config, tmp_path / "straight")
    lines = reports(tmp_path / "out")
    assert [line["adversarial_factor"] > 0 for line in lines] == [False, False, True, True]
    assert [line["step"] for line in lines if "holdout/psnr_db" in line] == [2, 4]
    assert [line["step"] for line in lines if "holdout/rfid" in line] == [2, 4]
    assert summary.model is not None
    assert changed_networks(models.base, summary.model) == {"vae"}
