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
from tests.cluster.train_group import run_group, same_bits, state_of
from tests.cluster.train_samples import write_samples
from tests.cluster.train_work import train_work
from tests.micro_models import write_models

SHARE = 0.3


def holdout_work(samples: str, model: str, out: Path, world_size: int, stage: int) -> TrainWork:
    work = train_work(samples, model, out, precision="float32", frozen_precision="float32")
    rest, rows = set_aside(manifest_of([samples]), SHARE, num_measured=17)
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
    found = [held.measure(engine, parts.held_losses_of, device="cpu") for _ in range(2)]
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
