"""Options that say how a step is computed: the same samples, losses and weights as without them."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.cluster.train_group import run_group, same_bits, state_of
from tests.cluster.train_here import train_here
from tests.cluster.train_samples import write_samples
from tests.cluster.train_work import train_work
from tests.micro_models import write_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def reported(name: str, out: Path) -> list[float]:
    return [json.loads(line)[name] for line in (out / "metrics.jsonl").read_text().splitlines()]


losses = functools.partial(reported, "loss")
gradient_norms = functools.partial(reported, "grad_norm")


def train_offloaded(folder: Path, model: str, samples: str) -> None:
    for stage in (1, 2, 3):
        states = []
        for is_offloaded in (False, True):
            out = folder / f"out-{stage}-{is_offloaded}"
            work = train_work(samples, model, out, zero_stage=stage, offload_optimizer=is_offloaded)
            ingest = dataclasses.replace(work.ingest, world_size=2, num_accumulated=1)
            states.append(state_of(train_here(dataclasses.replace(work, ingest=ingest))))
        assert same_bits(*states), stage


def test_optimizer_in_the_hosts_memory_gives_the_same_bits_at_every_stage(tmp_path: Path) -> None:
    model = write_models(tmp_path / "models").base
    samples = write_samples(tmp_path / "samples", model_digest="m")
    run_group(train_offloaded, world_size=2, folder=tmp_path, arguments=(model, samples))


def train_with(folder: Path, model: str, samples: str, names: tuple[str, ...]) -> None:
    for name in names:
        options = {} if name == "plain" else {name: True}
        work = train_work(samples, model, folder / name, num_steps=3, **options)
        exact = dataclasses.replace(work, precision="float32", frozen_precision="float32")
        train_here(exact)


def test_other_ways_to_compute_a_step_give_the_same_losses(tmp_path: Path) -> None:
    model = write_models(tmp_path / "models").base
    samples = write_samples(tmp_path / "samples", model_digest="m")
    names = ("plain", "channels_last", "activation_checkpointing")
    run_group(train_with, world_size=1, folder=tmp_path, arguments=(model, samples, names))
    plain = losses(tmp_path / "plain")
    assert len(plain) == 3
    assert losses(tmp_path / "activation_checkpointing") == plain
    assert losses(tmp_path / "channels_last") == pytest.approx(plain, rel=1e-4)


def train_compiled(folder: Path, model: str, samples: str) -> None:
    """Traced and differentiated as a whole; kernels as without: making new ones takes minutes."""
    traced = functools.partialmethod(nn.Module.compile, backend="aot_eager")
    for name, stage in itertools.product(("plain", "compile"), (1, 2, 3)):
        out = folder / f"{name}-{stage}"
        work = train_work(samples, model, out, zero_stage=stage, compile=name == "compile")
        ingest = dataclasses.replace(work.ingest, world_size=2, num_accumulated=1)
        exact = dataclasses.replace(
            work, ingest=ingest, precision="float32", frozen_precision="float32"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Module, "compile", traced)
            torch.compiler.reset()
            counters.clear()
            train_here(exact)
        assert bool(counters["frames"]["ok"]) == exact.compile


def test_a_compiled_network_learns_the_same_at_every_stage(tmp_path: Path) -> None:
    model = write_models(tmp_path / "models").base
    samples = write_samples(tmp_path / "samples", model_digest="m", buckets={(32, 32): 14})
    run_group(train_compiled, world_size=2, folder=tmp_path, arguments=(model, samples))
    for stage in (1, 2, 3):
        for read in (losses, gradient_norms):
            plain = read(tmp_path / f"plain-{stage}")
            assert read(tmp_path / f"compile-{stage}") == pytest.approx(plain, rel=1e-4)
