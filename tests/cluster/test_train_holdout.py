"""Held-out samples: never delivered for training, measured the same by any number of workers."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cluster.ingest import local_steps
from cluster.train_stages import make_stage
from cluster.train_work import Holdout, TrainWork
from cluster.train_worker import held_meter, zero_settings
from cluster.zero import ZeroEngine
from sdxl_core.data.holdout import groups_of_one_size, holdout_places, set_aside
from sdxl_core.data.manifest import manifest_of
from sdxl_core.data.plan import plan_epoch
from sdxl_core.training.autoencoder_network import AutoencoderSettings, pictures_of
from sdxl_core.training.seeded_batches import SampleBatch
from sdxl_core.training.seeded_objective import SampleLosses
from tests.cluster.train_group import run_group, same_bits, state_of
from tests.cluster.train_samples import write_samples
from tests.cluster.train_work import train_work
from tests.micro_models import write_models
from tests.random_inception import write_random_inception

SHARE = 0.3


def holdout_work(
    samples: str, model: str, out: Path, world_size: int, stage: int, num_measured: int = 17
) -> TrainWork:
    work = train_work(samples, model, out, precision="float32", frozen_precision="float32")
    rest, rows = set_aside(manifest_of([samples]), SHARE, num_measured=num_measured)
    ingest = dataclasses.replace(
        work.ingest, manifest=rest, holdout=SHARE, world_size=world_size, num_accumulated=1
    )
    held = Holdout(rows=tuple(rows), every=1)
    return dataclasses.replace(work, ingest=ingest, holdout=held, zero_stage=stage)


def test_samples_that_are_held_out_are_never_delivered_and_all_others_are(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", model_digest="m")
    work = holdout_work(samples, write_models(tmp_path / "models").base, tmp_path, 1, 2)
    plan = dataclasses.replace(work.ingest.plan, remainder="repeat")
    ingest = dataclasses.replace(work.ingest, plan=plan)
    num_batches = plan_epoch(ingest.manifest, plan, 0).num_batches
    steps = itertools.islice(local_steps(ingest, start=0, rank=0), num_batches)
    seen = {name for step in steps for batch in step.batches for name in batch.ids}
    assert (holdout_places(sorted(seen)) >= SHARE).all()
    assert len(seen) == ingest.manifest.num_rows < 70


def measure(folder: Path, samples: str, model: str, stage: int) -> None:
    world_size = dist.get_world_size()
    work = holdout_work(samples, model, folder, world_size, stage)
    held, parts = held_meter(work), make_stage(work, "cpu")
    assert held is not None
    engine = ZeroEngine(parts.network, zero_settings(work), device="cpu")
    before = {name: tensor.clone() for name, tensor in state_of(engine).items()}
    torch.manual_seed(world_size)  # nothing is drawn from here
    found = [held.measure(engine, parts, device="cpu") for _ in range(2)]
    assert found[0] == found[1]
    assert same_bits(before, state_of(engine))
    assert engine.module.training
    if dist.get_rank() == 0:
        (folder / f"found-{world_size}-{stage}.json").write_text(json.dumps(found[0]))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_loss_of_held_out_samples_is_the_same_for_any_number_of_workers(
    tmp_path: Path,
) -> None:
    samples = write_samples(tmp_path / "samples", model_digest="m")
    model = write_models(tmp_path / "models").base
    for world_size, stage in ((1, 2), (2, 3)):
        run_group(
            measure, world_size=world_size, folder=tmp_path, arguments=(samples, model, stage)
        )
    one, two = (
        json.loads((tmp_path / name).read_text()) for name in ("found-1-2.json", "found-2-3.json")
    )
    assert one == two
    work = holdout_work(samples, model, tmp_path, 1, 2)
    assert work.holdout is not None
    assert len(list(groups_of_one_size(work.holdout.rows, 4))) % 2 == 1, "one worker has to pad"
    assert one["holdout/loss"] > 0


def measure_rfid(folder: Path, samples: str, model: str, inception: str) -> None:
    world_size = dist.get_world_size()
    work = holdout_work(samples, model, folder, world_size, 2, num_measured=5)
    view = dataclasses.replace(work.ingest.view, pixels="images")
    work = dataclasses.replace(
        work,
        stage="vae",
        objective=None,
        autoencoder=AutoencoderSettings(
            discriminator_channels=4, discriminator_layers=2, inception=inception
        ),
        ingest=dataclasses.replace(work.ingest, view=view),
    )
    held, parts = held_meter(work), make_stage(work, "cpu")
    assert held is not None
    engine = ZeroEngine(parts.network, zero_settings(work), device="cpu")
    perfect = dataclasses.replace(parts, held_losses_of=_nothing_is_lost)
    found = {
        "autoencoder": held.measure(engine, parts, device="cpu"),
        "perfect": held.measure(engine, perfect, device="cpu"),
    }
    if dist.get_rank() == 0:
        (folder / f"rfid-{world_size}.json").write_text(json.dumps(found))


def _nothing_is_lost(_engine: ZeroEngine, samples: SampleBatch, _step: int) -> SampleLosses:
    nothing_B = torch.zeros(len(samples.ids))
    return SampleLosses(
        loss_B=nothing_B,
        error_B=nothing_B,
        timestep_B=nothing_B.long(),
        decoded_BCHW=pictures_of(samples.images_BHWC, "cpu"),
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rfid_of_held_out_pictures_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", model_digest="m", latents=False)
    model = write_models(tmp_path / "models").base
    inception = str(write_random_inception(tmp_path / "fid.safetensors"))
    for world_size in (1, 2):
        run_group(
            measure_rfid,
            world_size=world_size,
            folder=tmp_path,
            arguments=(samples, model, inception),
        )
    one, two = (json.loads((tmp_path / f"rfid-{number}.json").read_text()) for number in (1, 2))
    assert one == two
    assert one["autoencoder"].keys() >= {"holdout/loss", "holdout/psnr_db", "holdout/rfid"}
    assert one["perfect"]["holdout/rfid"] == pytest.approx(0, abs=1e-3)
    assert one["autoencoder"]["holdout/rfid"] > 1
