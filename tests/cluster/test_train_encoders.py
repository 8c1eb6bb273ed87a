"""Encoders beside the training: the workers get what they would have made themselves."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from cluster.ingest import local_steps, ray_steps, start_feeder
from cluster.resources import ENCODER_CPUS, ClusterSize
from cluster.train_encoders import SampleEncoder, check_encoders, start_encoders
from cluster.train_networks import load_frozen
from cluster.train_size import beside_encoders
from cluster.train_work import TrainWork
from sdxl_core.contract.errors import ResourceError, StoreError, WeightsError
from sdxl_core.nets.model import NotLoaded
from tests.cluster.train_samples import write_samples
from tests.cluster.train_work import train_work
from tests.micro_models import MicroModels


def encoder_work(folder: Path, model: str, **more: Any) -> TrainWork:
    """Pictures and captions for two workers with two forward passes each."""
    samples = write_samples(folder / "samples", model_digest="m", latents=False)
    work = train_work(samples, model, folder, num_encoders=2, **more)
    ingest = dataclasses.replace(
        work.ingest,
        view=dataclasses.replace(work.ingest.view, pixels="images"),
        world_size=2,
        num_accumulated=2,
    )
    return dataclasses.replace(work, ingest=ingest)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_encoded_samples_are_the_same_to_a_worker_as_pictures_and_captions(
    precision: str, models: MicroModels, tmp_path: Path
) -> None:
    for model in (models.base, models.refiner):
        folder = tmp_path / Path(model).name
        work = encoder_work(folder, model, frozen_precision=precision)
        step = next(local_steps(work.ingest, start=0, rank=1))
        inside = load_frozen(work, "cpu", encodes=True)
        outside = load_frozen(work, "cpu", encodes=False)
        assert isinstance(outside.model.vae, NotLoaded)
        encoder = SampleEncoder(work)
        for samples in step.batches:
            encoded = encoder.encode(samples)
            assert encoded.images_BHWC is None
            assert (encoded.ids, encoded.seeds) == (samples.ids, samples.seeds)
            theirs, ours = inside.batch(samples), outside.batch(encoded)
            for field in dataclasses.fields(theirs):
                expected = getattr(theirs, field.name)
                assert torch.equal(getattr(ours, field.name), expected.float()), field.name


def test_what_is_stored_goes_through_an_encoder_as_it_is(
    models: MicroModels, tmp_path: Path
) -> None:
    samples = write_samples(tmp_path / "samples", model_digest="m")
    work = train_work(samples, models.base, tmp_path, num_encoders=1)
    ingest = dataclasses.replace(work.ingest, num_accumulated=1)
    (read,) = next(local_steps(ingest, start=0, rank=0)).batches
    encoded = SampleEncoder(work).encode(read)
    assert encoded.moments_BCHW is read.moments_BCHW
    assert encoded.states_BTD is not None
    assert encoded.states_BTD.dtype == np.float32


@pytest.mark.ray
@pytest.mark.slow
def test_encoded_batches_come_in_the_plans_order_also_when_an_encoder_dies(
    local_ray: None, models: MicroModels, tmp_path: Path
) -> None:
    work = encoder_work(tmp_path, models.base)
    encoders = start_encoders(work)
    start_feeder(work.ingest, start=3, name="encoded", encoders=encoders)
    here = SampleEncoder(work)
    for rank in (0, 1):
        found = ray_steps("encoded", start=3, rank=rank)
        wanted = local_steps(work.ingest, start=3, rank=rank)
        for number, expected in enumerate(itertools.islice(wanted, 6)):
            step = next(found)
            assert (step.index, step.bucket) == (expected.index, expected.bucket)
            for samples, read in zip(step.batches, expected.batches, strict=True):
                again = here.encode(read)
                assert samples.ids == read.ids
                np.testing.assert_array_equal(samples.moments_BCHW, again.moments_BCHW)
                np.testing.assert_array_equal(samples.states_BTD, again.states_BTD)
            if rank == 0 and number == 1:
                ray.kill(encoders[0], no_restart=False)
                again = ray.get(encoders[0].encode.remote(expected.batches[0]))
                np.testing.assert_array_equal(again.states_BTD, step.batches[0].states_BTD)


@pytest.mark.ray
@pytest.mark.slow
def test_a_file_that_is_gone_stops_the_run_with_its_name_through_an_encoder(
    local_ray: None, models: MicroModels, tmp_path: Path
) -> None:
    work = encoder_work(tmp_path, models.base)
    for path in (tmp_path / "samples").rglob("part-*.parquet"):
        path.unlink()
    start_feeder(work.ingest, start=0, name="gone", encoders=start_encoders(work))
    with pytest.raises(StoreError, match=r"part-.*\.parquet"):
        next(ray_steps("gone", start=0, rank=0))


def test_encoders_leave_the_rest_to_the_workers() -> None:
    size = ClusterSize(num_cpus=16.0, num_gpus=8.0, memory_bytes=1e9, nodes=((16.0, 8.0),))
    assert beside_encoders(size, 0, "cuda") == size
    left = beside_encoders(size, 2, "cuda")
    assert (left.num_gpus, left.num_cpus) == (6.0, 16.0 - 2 * ENCODER_CPUS)
    assert beside_encoders(size, 2, "cpu").num_gpus == 8.0
    with pytest.raises(ResourceError, match="8 encoders x 1 GPU, but the cluster has 8 GPUs"):
        beside_encoders(size, 8, "cuda")


def test_a_model_that_cannot_be_read_is_told_of_by_every_call(
    models: MicroModels, tmp_path: Path
) -> None:
    """An actor that dies when it is made could not say why."""
    work = encoder_work(tmp_path, models.base)
    encoder = SampleEncoder(dataclasses.replace(work, model=str(tmp_path / "nowhere")))
    (samples, _) = next(local_steps(work.ingest, start=0, rank=0)).batches
    for call in (encoder.check, lambda: encoder.encode(samples)):
        with pytest.raises(WeightsError, match="nowhere"):
            call()


@pytest.mark.ray
@pytest.mark.slow
def test_encoders_without_room_end_the_run_with_that_message(
    local_ray: None, models: MicroModels, tmp_path: Path
) -> None:
    work = encoder_work(tmp_path, models.base)
    actor = ray.remote(SampleEncoder)
    somewhere = actor.options(num_cpus=0)
    nowhere = actor.options(resources={"no such machine": 1})
    with pytest.raises(ResourceError, match=r"1 of 1 encoders have not started within 2 s"):
        check_encoders([nowhere.remote(work)], timeout_s=2)
    unreadable = dataclasses.replace(work, model=str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="nowhere"):
        check_encoders([somewhere.remote(unreadable)])
    encoder = somewhere.remote(work)
    check_encoders([encoder])
