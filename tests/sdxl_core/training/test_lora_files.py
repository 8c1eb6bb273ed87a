"""Adapters as files: diffusers reads both namings, and so do we."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.build import AutoencoderKL, build_unet
from sdxl_core.nets.presets import SDXL_BASE, SDXL_REFINER, ModelKind
from sdxl_core.training.lora import LoraSettings, add_lora, lora_weights
from sdxl_core.training.lora_files import (
    LoraWeights,
    kohya_name,
    read_lora,
    write_diffusers_lora,
    write_kohya_lora,
)
from tests.micro_models import MICRO_BASE, MICRO_REFINER, micro_model
from tests.sdxl_core.training.adapters import KINDS, answer, fill

UP_BLOCKS = {
    "base": MICRO_BASE.unet.up_block_types,
    "refiner": MICRO_REFINER.unet.up_block_types,
}


def _adapted(kind: ModelKind, alpha: float | None = 1.5) -> nn.Module:
    unet = copy.deepcopy(micro_model(kind).unet)
    add_lora(unet, LoraSettings(rank=3, alpha=alpha, targets="transformer"), seed=1)
    fill(unet)
    return unet


def _pipeline(kind: ModelKind) -> StableDiffusionXLPipeline | StableDiffusionXLImg2ImgPipeline:
    """A pipeline of diffusers around the network, with no adapter yet."""
    pipeline_type = (
        StableDiffusionXLPipeline if kind == "base" else StableDiffusionXLImg2ImgPipeline
    )
    vae: AutoencoderKL = micro_model(kind).vae
    none = dict.fromkeys(
        ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"]
    )
    return pipeline_type(vae=vae, unet=copy.deepcopy(micro_model(kind).unet), **none)


def _write(path: Path, unet: nn.Module, kind: ModelKind, naming: str) -> None:
    if naming == "diffusers":
        write_diffusers_lora(path, lora_weights(unet))
    else:
        write_kohya_lora(path, lora_weights(unet), up_block_types=UP_BLOCKS[kind])


def _linear_layers(unet: nn.Module) -> list[str]:
    return [name for name, module in unet.named_modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_diffusers_pipeline_with_the_file_answers_as_the_trained_network(
    tmp_path: Path, kind: ModelKind, naming: str, alpha: float | None
) -> None:
    unet = _adapted(kind, alpha)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    _write(path, unet, kind, naming)
    pipeline = _pipeline(kind)
    with torch.no_grad():
        before = answer(pipeline.unet, kind)
        pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
        found, expected = answer(pipeline.unet, kind), answer(unet, kind)
    assert not torch.allclose(before, expected, atol=0.01)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_diffusers_file_is_the_one_that_diffusers_saves(tmp_path: Path) -> None:
    unet = _adapted("base")
    theirs = get_peft_model_state_dict(unet)
    StableDiffusionXLPipeline.save_lora_weights(tmp_path / "theirs", unet_lora_layers=theirs)
    write_diffusers_lora(tmp_path / "ours.safetensors", lora_weights(unet))
    expected = load_file(tmp_path / "theirs" / "pytorch_lora_weights.safetensors")
    found = load_file(tmp_path / "ours.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_read_lora_takes_the_older_names_of_diffusers_training_script(tmp_path: Path) -> None:
    unet = _adapted("base", alpha=None)
    theirs = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    assert any(name.endswith(".lora.down.weight") for name in theirs)
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=theirs)
    found = read_lora(
        tmp_path / "pytorch_lora_weights.safetensors",
        modules=_linear_layers(micro_model("base").unet),
        up_block_types=UP_BLOCKS["base"],
    )
    expected = lora_weights(unet)
    assert found.alpha == expected.alpha
    assert found.down.keys() == expected.down.keys()
    assert all(torch.equal(found.up[name], expected.up[name]) for name in expected.up)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k",
        ),
        (
            "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
            "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
        ),
        (
            "up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0",
            "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_out_0",
        ),
        ("up_blocks.0.attentions.1.proj_in", "lora_unet_output_blocks_1_1_proj_in"),
    ],
)
def test_kohya_names_are_those_of_sd_scripts(module: str, expected: str) -> None:
    assert kohya_name(module, up_block_types=SDXL_BASE.unet.up_block_types) == expected


@pytest.mark.parametrize("preset", [SDXL_BASE, SDXL_REFINER], ids=lambda preset: preset.name)
def test_kohya_names_of_a_full_size_network_are_all_different(preset: object) -> None:
    with torch.device("meta"):
        unet = build_unet(preset)  # type: ignore[arg-type]
    layers = _linear_layers(unet)
    blocks = preset.unet.up_block_types  # type: ignore[attr-defined]
    assert len({kohya_name(layer, up_block_types=blocks) for layer in layers}) == len(layers)


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
@pytest.mark.parametrize("kind", KINDS)
def test_read_lora_gives_back_what_was_written(
    tmp_path: Path, kind: ModelKind, naming: str
) -> None:
    unet, path = _adapted(kind), tmp_path / "lora.safetensors"
    _write(path, unet, kind, naming)
    found = read_lora(
        path, modules=_linear_layers(micro_model(kind).unet), up_block_types=UP_BLOCKS[kind]
    )
    expected = lora_weights(unet)
    assert (found.rank, found.alpha) == (expected.rank, expected.alpha)
    for mine, theirs in ((found.down, expected.down), (found.up, expected.up)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_files_may_be_of_half_precision(tmp_path: Path) -> None:
    unet, path = _adapted("base"), tmp_path / "lora.safetensors"
    write_kohya_lora(
        path, lora_weights(unet), up_block_types=UP_BLOCKS["base"], dtype=torch.float16
    )
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}


def _lora(**layers: tuple[int, int]) -> LoraWeights:
    """Layers by name with the ranks of their halves."""
    return LoraWeights(
        rank=2,
        alpha=2.0,
        down={name: torch.ones(ranks[0], 4) for name, ranks in layers.items()},
        up={name: torch.ones(4, ranks[1]) for name, ranks in layers.items()},
    )


def test_read_lora_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_diffusers_lora(path, _lora(elsewhere=(2, 2)))
    with pytest.raises(WeightsError, match=r"unet\.elsewhere.*another model"):
        read_lora(path, modules=["here"], up_block_types=UP_BLOCKS["base"])


def test_read_lora_of_several_ranks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_diffusers_lora(path, _lora(one=(2, 2), two=(3, 3)))
    with pytest.raises(WeightsError, match=r"2 layers of ranks \[2, 3\]"):
        read_lora(path, modules=["one", "two"], up_block_types=UP_BLOCKS["base"])


def test_read_lora_with_half_a_layer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"unet.one.lora_A.weight": torch.ones(2, 4)}, path)
    with pytest.raises(WeightsError, match="both halves"):
        read_lora(path, modules=["one"], up_block_types=UP_BLOCKS["base"])


def test_read_lora_of_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_text("not weights")
    with pytest.raises(WeightsError, match="is no safetensors file"):
        read_lora(path, modules=[], up_block_types=UP_BLOCKS["base"])
