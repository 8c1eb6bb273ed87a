"""One worker's parts put together around real networks, without Ray: from samples to a model."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cluster.train_meter import report_line
from cluster.train_validation import render
from cluster.train_work import TrainWork
from cluster.zero import ZeroEngine
from sdxl_core.contract.request import Request
from sdxl_core.nets.weights import export_model, load_model
from sdxl_core.training.checkpoint_export import is_checkpoint, model_of_checkpoint
from tests.cluster.train_group import run_group, same_bits, state_of
from tests.cluster.train_here import train_here
from tests.cluster.train_samples import REFINER_BUCKETS, write_samples
from tests.cluster.train_work import train_work
from tests.micro_models import MicroModels, write_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def train_alone(folder: Path, models: MicroModels, samples: str) -> None:
    for kind, path in (("base", models.base), ("refiner", models.refiner)):
        # Both options of the large recipes, in one of the two runs.
        memory = {"channels_last": True, "activation_checkpointing": True}
        work = train_work(samples, path, folder / kind, **(memory if kind == "base" else {}))
        engine = train_here(work)
        if kind == "base":
            check_rendering(engine, work)


def check_rendering(engine: ZeroEngine, work: TrainWork) -> None:
    """Pictures are made of the running mean, and the state is as before."""
    before = {name: tensor.clone() for name, tensor in state_of(engine).items()}
    weights = [parameter.detach().clone() for parameter in engine.module.parameters()]
    model = load_model(work.model)
    requests = [Request(prompt=p, id=p, height=64, width=64, steps=1) for p in ("a", "b")]
    pictures = render(engine, model, requests)
    assert [name for name, _ in pictures] == ["a", "b"]
    assert all(rgb_HWC.shape == (64, 64, 3) for _, rgb_HWC in pictures)
    assert same_bits(before, state_of(engine))
    for parameter, weight in zip(engine.module.parameters(), weights, strict=True):
        assert torch.equal(parameter, weight)
    assert dist.get_world_size() == 1


def test_a_base_and_a_refiner_are_trained_and_their_checkpoints_are_models(tmp_path: Path) -> None:
    models = write_models(tmp_path / "models")
    samples = write_samples(tmp_path / "samples", model_digest="m", buckets=REFINER_BUCKETS)
    run_group(train_alone, world_size=1, folder=tmp_path, arguments=(models, samples))
    for kind, path in (("base", models.base), ("refiner", models.refiner)):
        out = str(tmp_path / kind)
        lines = [
            json.loads(s) for s in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()
        ]
        assert [line["step"] for line in lines] == [1, 2]
        assert report_line(1, 2, lines[0]).startswith("step 1/2, loss "), lines
        assert all(line["loss"] > 0 and line["grad_norm"] > 0 for line in lines)
        assert all(line["tflops_per_s_per_worker"] > 0 for line in lines)
        assert list((tmp_path / kind / "tensorboard").iterdir())
        assert is_checkpoint(out)
        first = f"{out}/checkpoints/step-00000001"
        raw, ema = model_of_checkpoint(out, weights="raw"), model_of_checkpoint(out)
        before = load_model(path)
        for name, tensor in before.unet.state_dict().items():
            # The last of two steps moves the raw weights further than the mean with decay 0.1.
            moved = (raw.unet.state_dict()[name] - tensor).abs().max()
            assert 0 < moved < 3e-3, name
            assert not torch.equal(ema.unet.state_dict()[name], raw.unet.state_dict()[name])
        assert torch.equal(ema.text_2.token_embedding.weight, before.text_2.token_embedding.weight)
        earlier = model_of_checkpoint(first, weights="raw").unet.state_dict()
        assert any(not torch.equal(earlier[n], t) for n, t in raw.unet.state_dict().items())
        export_model(ema, tmp_path / "exported" / kind)
        again = load_model(tmp_path / "exported" / kind)
        for name, tensor in ema.unet.state_dict().items():
            assert torch.equal(again.unet.state_dict()[name], tensor)
    assert not is_checkpoint(models.base)
