"""Exports: the same bytes whichever way round, and loadable by plain diffusers."""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import pytest
import safetensors
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from sdxl_core.contract.errors import ConfigError, StoreError
from sdxl_core.nets.build import build_networks
from sdxl_core.nets.layouts import diffusers_slots, network_shapes
from sdxl_core.nets.model import model_of
from sdxl_core.nets.model_configs import component_configs
from sdxl_core.nets.presets import SDXL_BASE, SDXL_REFINER
from sdxl_core.nets.text import encode_text_1, encode_text_2
from sdxl_core.nets.tokenizer import PAD_ID_TEXT_1, PAD_ID_TEXT_2, tokenize
from sdxl_core.nets.weights import export_model, load_model
from sdxl_core.storage.stores import open_store
from tests.servers import moto_s3

LAYOUTS = ["diffusers", "single-file"]


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file of an export by its path."""
    files = [out] if out.is_file() else sorted(p for p in out.rglob("*") if p.is_file())
    return {
        "" if p == out else p.relative_to(out).as_posix(): hashlib.sha256(
            p.read_bytes()
        ).hexdigest()
        for p in files
    }


def exported(model, out: Path, layout: str, **options) -> Path:
    path = out / ("model" if layout == "diffusers" else "model.safetensors")
    export_model(model, path, layout=layout, **options)
    return path


@pytest.mark.parametrize(("first", "second"), itertools.product(LAYOUTS, LAYOUTS))
def test_export_of_a_loaded_export_is_bit_identical(folder, single_file, first, second, tmp_path):
    direct = {"diffusers": folder, "single-file": single_file}
    there = exported(load_model(direct[first]), tmp_path / "there", second)
    assert hashes(there) == hashes(direct[second])
    back = exported(load_model(there), tmp_path / "back", first)
    assert hashes(back) == hashes(direct[first])


@pytest.mark.parametrize("stored_dtype", [torch.float16, torch.bfloat16])
def test_export_keeps_the_stored_precision_of_a_model_loaded_in_float32(
    refiner, stored_dtype, tmp_path
):
    first = exported(refiner, tmp_path / "a", "single-file", dtype=stored_dtype)
    loaded = load_model(first, dtype=torch.float32)
    assert hashes(exported(loaded, tmp_path / "b", "single-file")) == hashes(first)
    folder = load_model(exported(loaded, tmp_path / "c", "diffusers"))
    assert folder.digest == loaded.digest


def test_changed_sampling_settings_survive_both_layouts(refiner, tmp_path):
    changed = dataclasses.replace(
        refiner, prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=0
    )
    for layout in LAYOUTS:
        loaded = load_model(exported(changed, tmp_path, layout))
        assert loaded.prediction_type == "v_prediction"
        assert (loaded.timestep_spacing, loaded.steps_offset) == ("trailing", 0)


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def loaded_by_diffusers(pipeline, folder):
    pipe = pipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_plain_diffusers_loads_the_export_and_computes_the_same(model, folder):
    pipeline = {"base": StableDiffusionXLPipeline, "refiner": StableDiffusionXLImg2ImgPipeline}
    pipe = loaded_by_diffusers(pipeline[model.kind], folder)

    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)
    assert pipe.config.force_zeros_for_empty_prompt == (model.kind == "base")
    for theirs, ours in ((pipe.unet, model.unet), (pipe.vae, model.vae)):
        assert public_config(theirs) == public_config(ours)
        assert_same_tensors(theirs.state_dict(), ours.state_dict())
    with torch.no_grad():
        states_BTD, _, pooled_BP, _ = pipe.encode_prompt(
            "a red circle", device="cpu", do_classifier_free_guidance=False
        )
        ids_2 = tokenize(["a red circle"], pad_id=PAD_ID_TEXT_2).ids_BT
        expected_BTD, expected_BP = encode_text_2(model.text_2, ids_2)
        if model.text_1 is not None:
            ids_1 = tokenize(["a red circle"], pad_id=PAD_ID_TEXT_1).ids_BT
            first_BTD = encode_text_1(model.text_1, ids_1)
            expected_BTD = torch.cat([first_BTD, expected_BTD], dim=-1)
    torch.testing.assert_close(states_BTD, expected_BTD, atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled_BP, expected_BP, atol=1e-5, rtol=0)


def public_config(network) -> dict:
    """The network's settings, with lists for tuples."""
    return json.loads(
        json.dumps({k: v for k, v in network.config.items() if not k.startswith("_")})
    )


def test_plain_diffusers_paints_with_the_export(model, folder):
    generator = torch.Generator().manual_seed(0)
    options = {"output_type": "np", "num_inference_steps": 2, "generator": generator}
    if model.kind == "base":
        pipe = loaded_by_diffusers(StableDiffusionXLPipeline, folder)
        image = pipe("a red circle", height=64, width=64, **options).images[0]
    else:
        pipe = loaded_by_diffusers(StableDiffusionXLImg2ImgPipeline, folder)
        image = pipe(
            "a red circle", image=torch.rand(1, 3, 64, 64), strength=1.0, **options
        ).images[0]
    assert image.shape == (64, 64, 3)


def test_diffusers_reads_the_networks_from_the_single_file(model, folder, single_file):
    unet = UNet2DConditionModel.from_single_file(
        str(single_file), config=str(folder), subfolder="unet", local_files_only=True
    )
    vae = AutoencoderKL.from_single_file(
        str(single_file), config=str(folder), subfolder="vae", local_files_only=True
    )
    for theirs, ours in ((unet, model.unet), (vae, model.vae)):
        assert_same_tensors(theirs.state_dict(), ours.state_dict())


@pytest.mark.parametrize("preset", [SDXL_BASE, SDXL_REFINER], ids=lambda p: p.name)
def test_full_size_folder_is_what_diffusers_and_transformers_build_from_its_configs(
    preset, tmp_path
):
    with torch.device("meta"):
        model = model_of(preset, build_networks(preset))
        configs = component_configs(preset)
        unet = UNet2DConditionModel.from_config(configs["unet"])
        vae = AutoencoderKL.from_config(configs["vae"])
    slots = diffusers_slots(network_shapes(model.networks))
    for component, theirs in (("unet", unet), ("vae", vae)):
        ours = {s.stored_name: s.stored_shape for s in slots[component]}
        assert ours == {name: tuple(t.shape) for name, t in theirs.state_dict().items()}


def test_folder_holds_the_files_of_the_released_ones(model, folder):
    text_1 = {
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
    }
    shared = {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer_2/merges.txt",
        "tokenizer_2/special_tokens_map.json",
        "tokenizer_2/tokenizer_config.json",
        "tokenizer_2/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert set(hashes(folder)) == shared | (text_1 if model.kind == "base" else set())


def test_safetensors_library_finds_the_framework_in_every_file(folder, single_file):
    for path in [single_file, *folder.rglob("*.safetensors")]:
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata()["format"] == "pt"


def test_export_that_stops_midway_leaves_no_model_and_no_scraps(refiner, tmp_path):
    broken = model_of(refiner.preset, {**refiner.networks, "vae": torch.nn.Linear(2, 2)})
    broken.vae.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    with pytest.raises(KeyError):
        export_model(broken, tmp_path / "out")
    assert not (tmp_path / "out/model_index.json").exists()
    assert not list((tmp_path / "out").rglob(".tmp-*"))


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("x", {"layout": "single-file"}, "ending in .safetensors"),
        ("x.safetensors", {"layout": "diffusers"}, "needs a folder"),
        ("x", {"layout": "onnx"}, "found 'onnx'"),
        ("x.safetensors", {"layout": "single-file", "variant": "fp16"}, "no variants"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(refiner, tmp_path, out, options, message):
    with pytest.raises(ConfigError, match=message):
        export_model(refiner, tmp_path / out, **options)
    assert not list(tmp_path.iterdir())


def test_model_that_is_not_wholly_loaded_is_refused(folder, tmp_path):
    part = load_model(folder, components=["vae"])
    with pytest.raises(ConfigError, match=r"unet was not loaded|text_encoder.* was not loaded"):
        export_model(part, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_place_that_cannot_be_written_is_told(refiner, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        export_model(refiner, tmp_path / "file" / "out")


@pytest.fixture(scope="module")
def s3_server():
    with moto_s3() as server:
        server.make_bucket("models")
        yield server


@pytest.mark.s3
@pytest.mark.timeout(300)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_model_comes_back_from_s3_as_it_went(refiner, layout, tmp_path, monkeypatch, s3_server):
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    local = exported(refiner, tmp_path, layout, dtype=torch.float16)
    url = f"s3://models/some/{local.name}"

    export_model(load_model(local), url, layout=layout)

    store = open_store(f"s3://models/some/{'' if layout == 'single-file' else local.name}")
    names = hashes(local) if layout == "diffusers" else {local.name: hashes(local)[""]}
    found = {name: hashlib.sha256(store.read_bytes(name)).hexdigest() for name in names}
    assert found == names
    assert load_model(url).digest == load_model(local).digest
