"""Adapters trained by two processes without Ray: what learns, and what files hold of it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.train_work import TrainWork
from cluster.zero import ZeroEngine
from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.weights import load_model
from sdxl_core.training.checkpoint_export import model_of_checkpoint, read_trained
from sdxl_core.training.checkpoint_store import open_checkpoint
from sdxl_core.training.lora import LoraSettings
from sdxl_core.training.lora_export import DIFFUSERS_FILE, KOHYA_FILE, export_lora
from sdxl_core.training.lora_files import merge_lora, read_lora
from tests.cluster.train_group import run_group, same_bits, state_of
from tests.cluster.train_here import train_here
from tests.cluster.train_samples import BUCKETS, REFINER_BUCKETS, write_samples
from tests.cluster.train_work import train_work
from tests.micro_models import write_models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LORA = LoraSettings(rank=2, alpha=4.0, targets="transformer")


def adapter_work(samples: str, model: str, out: Path, stage: int) -> TrainWork:
    work = train_work(samples, model, out, lora=LORA, zero_stage=stage, num_steps=3)
    return dataclasses.replace(
        work, ingest=dataclasses.replace(work.ingest, world_size=2, num_accumulated=1)
    )


def frozen_weights(engine: ZeroEngine) -> dict[str, torch.Tensor]:
    """By name; where a worker has its share only (stage 3), that share."""
    return {
        name: getattr(p, "ds_tensor", p).detach().clone()
        for name, p in engine.module.module.named_parameters()
        if not p.requires_grad
    }


# At stage 3 two runs of a refiner's adapter have been seen to part by a rounding on the CPU, with
# and without a resume; why is not known. docs/train.md says so.
STAGES = {"base": (1, 2, 3), "refiner": (1, 2)}


def train_at_every_stage(folder: Path, kind: str, model: str, samples: str) -> None:
    for stage in STAGES[kind]:
        straight = train_here(adapter_work(samples, model, folder / f"straight-{stage}", stage))
        assert all(".lora_" in name for name in straight.shapes)
        broken = adapter_work(samples, model, folder / f"broken-{stage}", stage)
        first = train_here(broken, stop_at=1)
        before = frozen_weights(first)
        again = train_here(broken)
        assert same_bits(state_of(straight), state_of(again)), stage
        after = frozen_weights(again)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_an_adapter_is_trained_resumed_to_the_bit_and_written_for_others(
    kind: str, tmp_path: Path
) -> None:
    model = getattr(write_models(tmp_path / "models"), kind)
    buckets = BUCKETS if kind == "base" else REFINER_BUCKETS
    samples = write_samples(tmp_path / "samples", model_digest="m", buckets=buckets)
    run_group(train_at_every_stage, world_size=2, folder=tmp_path, arguments=(kind, model, samples))
    outs = [str(tmp_path / f"straight-{stage}") for stage in STAGES[kind]]
    found = [read_trained(*open_checkpoint(out), weights="raw") for out in outs]
    for others in found[1:]:
        # Three steps of 1e-3; where a gradient is next to nothing, bfloat16 decides on its sign.
        apart = torch.cat([(others[n] - t).abs().flatten() for n, t in found[0].items()])
        assert (apart > 5e-4).float().mean() < 0.1
    assert any(tensor.abs().max() > 0 for n, tensor in found[0].items() if ".lora_B." in n)
    check_files(tmp_path / "files", outs[1], model)


def check_files(folder: Path, out: str, model: str) -> None:
    """Both files are the adapter; beside its weights, and merged, the network says the same."""
    export_lora(out, folder)
    whole = load_model(model)
    names = [n for n, m in whole.unet.named_modules() if isinstance(m, torch.nn.Linear)]
    blocks = whole.preset.unet.up_block_types
    loras = [
        read_lora(folder / file, modules=names, up_block_types=blocks)
        for file in (DIFFUSERS_FILE, KOHYA_FILE)
    ]
    assert [(lora.rank, lora.alpha) for lora in loras] == [(2, 4.0)] * 2
    merged = model_of_checkpoint(out).unet.state_dict()
    before = {name: tensor.clone() for name, tensor in whole.unet.state_dict().items()}
    merge_lora(whole.unet, loras[0])
    for name, tensor in whole.unet.state_dict().items():
        assert torch.equal(merged[name], tensor), name
    changed = [name for name, tensor in before.items() if not torch.equal(merged[name], tensor)]
    assert set(changed) == {f"{name}.weight" for name in loras[1].down}
    from diffusers import UNet2DConditionModel  # late: processes that train need none of it

    peer: Any = UNet2DConditionModel.from_pretrained(f"{model}/unet")
    peer.load_lora_adapter(str(folder), weight_name=DIFFUSERS_FILE, prefix="unet")
    peer.fuse_lora()
    fused = {n.replace(".base_layer", ""): t for n, t in peer.state_dict().items()}
    for name in changed:
        torch.testing.assert_close(fused[name], merged[name], rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_a_whole_network_has_no_adapter_to_write(tmp_path: Path) -> None:
    model = write_models(tmp_path / "models").base
    samples = write_samples(tmp_path / "samples", model_digest="m")
    run_group(train_whole, world_size=1, folder=tmp_path, arguments=(model, samples))
    with pytest.raises(ConfigError, match="expected an adapter"):
        export_lora(str(tmp_path / "whole"), tmp_path / "files")


def train_whole(folder: Path, model: str, samples: str) -> None:
    assert dist.get_world_size() == 1
    train_here(train_work(samples, model, folder / "whole", num_steps=1))
