"""The autoencoder's stage by two processes without Ray: resume, reports, and the model it makes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from cluster.train_networks import load_autoencoder
from cluster.train_work import TrainWork
from sdxl_core.nets.weights import load_model
from sdxl_core.training.autoencoder_network import (
    DISCRIMINATOR_PREFIX,
    LOSS_PARTS,
    AutoencoderSettings,
)
from sdxl_core.training.autoencoder_stage import AutoencoderObjective
from sdxl_core.training.checkpoint_export import model_of_checkpoint, read_trained
from sdxl_core.training.checkpoint_store import open_checkpoint
from tests.cluster.train_group import run_group, same_bits, state_of
from tests.cluster.train_here import train_here
from tests.cluster.train_samples import write_samples
from tests.cluster.train_work import train_work
from tests.micro_models import write_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# The discriminator has a say from the third of four steps on.
SETTINGS = AutoencoderSettings(
    objective=AutoencoderObjective(num_warmup_steps=2),
    discriminator_channels=4,
    discriminator_layers=2,
)


def autoencoder_work(samples: str, model: str, out: Path, stage: int) -> TrainWork:
    work = train_work(samples, model, out, stage="vae", objective=None, autoencoder=SETTINGS)
    ingest = dataclasses.replace(
        work.ingest,
        view=dataclasses.replace(work.ingest.view, pixels="images"),
        world_size=2,
        num_accumulated=1,
    )
    return dataclasses.replace(
        work, ingest=ingest, num_steps=4, zero_stage=stage, precision="float32"
    )


def train_twice(folder: Path, model: str, samples: str) -> None:
    for stage in (1, 2):
        straight = train_here(autoencoder_work(samples, model, folder / f"straight-{stage}", stage))
        broken = autoencoder_work(samples, model, folder / f"broken-{stage}", stage)
        train_here(broken, stop_at=3)
        assert same_bits(state_of(straight), state_of(train_here(broken))), stage


def test_an_autoencoder_is_trained_resumed_to_the_bit_and_exported(tmp_path: Path) -> None:
    model = write_models(tmp_path / "models").base
    samples = write_samples(tmp_path / "samples", model_digest="m", latents=False)
    run_group(train_twice, world_size=2, folder=tmp_path, arguments=(model, samples))
    out = tmp_path / "straight-2"
    lines = [json.loads(s) for s in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line.keys() >= set(LOSS_PARTS) for line in lines)
    assert all(0 < line["psnr_db"] < 60 and -1 < line["ssim"] < 1 for line in lines)
    assert [line["discriminator"] > 0 for line in lines] == [False, False, True, True]
    assert [line["adversarial_factor"] > 0 for line in lines] == [False, False, True, True]
    assert not any(name.startswith("loss_by_noise") for line in lines for name in line)

    # Before it has a say, the discriminator stands still: nothing decays its weights.
    pair = load_autoencoder(autoencoder_work(samples, model, out, 2)).state_dict()
    stood, moved_on = (
        read_trained(*open_checkpoint(f"{out}/checkpoints/step-{step:08d}"), weights="raw")
        for step in (2, 3)
    )
    names = [name for name in stood if name.startswith(DISCRIMINATOR_PREFIX)]
    assert names
    assert all(torch.equal(stood[name], pair[name]) for name in names)
    assert not any(torch.equal(moved_on[name], pair[name]) for name in names)

    before, after = load_model(model), model_of_checkpoint(str(out), weights="raw")
    ema = model_of_checkpoint(str(out))
    for name, tensor in before.vae.state_dict().items():
        moved = (after.vae.state_dict()[name] - tensor).abs().max()
        assert 0 < moved < 5e-3, name
        assert not torch.equal(ema.vae.state_dict()[name], after.vae.state_dict()[name])
    for name, tensor in before.unet.state_dict().items():
        assert torch.equal(after.unet.state_dict()[name], tensor)
    trained = [
        read_trained(*open_checkpoint(str(tmp_path / f"straight-{stage}")), weights="raw")
        for stage in (1, 2)
    ]
    assert any(name.startswith(DISCRIMINATOR_PREFIX) for name in trained[0])
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, rtol=0, atol=1e-6)
