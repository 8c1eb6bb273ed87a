"""Loading: what comes out is what was stored, and what does not fit is refused by name."""

import json
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from sdxl_core.contract.errors import ConfigError, WeightsError
from sdxl_core.nets.build import CLIPTextModel
from sdxl_core.nets.digest import networks_digest
from sdxl_core.nets.model import NotLoaded, trained_as
from sdxl_core.nets.weights import export_model, load_model, model_identity

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the exported folder that the test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def tensors_of(path):
    # Not load_file: it maps the file, which the tests then write over.
    return safetensors.torch.load(path.read_bytes())


def edit(path, change):
    """Rewrites a safetensors file after ``change`` worked on the dict of its tensors."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = tensors_of(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata)


def assert_same_networks(found, expected):
    assert found.networks.keys() == expected.networks.keys()
    for component, network in expected.networks.items():
        for values in ("state_dict", "named_buffers"):
            theirs = dict(getattr(network, values)())
            ours = dict(getattr(found.networks[component], values)())
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                assert torch.equal(ours[name], tensor), (component, name)


@pytest.mark.parametrize("layout", ["folder", "single_file"])
def test_loaded_model_has_the_exported_weights_buffers_and_settings(model, layout, request):
    loaded = load_model(request.getfixturevalue(layout))
    assert_same_networks(loaded, model)
    assert loaded.preset == model.preset
    assert loaded.force_zeros_for_empty_prompt == (model.kind == "base")
    assert (loaded.prediction_type, loaded.timestep_spacing) == ("epsilon", "leading")
    assert loaded.steps_offset == 1
    assert not any(m.training for network in loaded.networks.values() for m in network.modules())


@pytest.mark.parametrize(("layout", "name"), [("diffusers", "m"), ("single-file", "m.safetensors")])
def test_files_say_that_the_schedule_is_rescaled(base, layout, name, tmp_path):
    trained = trained_as(base, prediction_type="v_prediction", zero_terminal_snr=True)
    export_model(trained, tmp_path / name, layout=layout)
    loaded = load_model(tmp_path / name, components=())
    assert (loaded.zero_terminal_snr, loaded.timestep_spacing) == (True, "trailing")
    assert loaded.prediction_type == "v_prediction"


def test_digest_is_the_same_for_both_layouts_and_every_precision_in_memory(
    model, folder, single_file
):
    digest = load_model(folder).digest
    assert digest == networks_digest(model.networks)
    assert digest == load_model(single_file).digest
    assert digest == load_model(folder, dtype=torch.bfloat16).digest


def test_identity_is_the_sizes_and_the_digest_without_loading(model, folder, single_file):
    expected = (model.preset, load_model(folder).digest)
    assert model_identity(folder) == model_identity(single_file) == expected


@pytest.mark.parametrize("layout", ["folder", "single_file"])
def test_wanted_components_are_loaded_and_the_others_refuse_to_run(model, layout, request):
    loaded = load_model(request.getfixturevalue(layout), components=["vae"])
    assert loaded.digest == ""
    for component, network in loaded.networks.items():
        assert isinstance(network, NotLoaded) == (component != "vae")
    with pytest.raises(ConfigError, match="unet was not loaded"):
        loaded.unet(torch.zeros(1, 4, 8, 8))
    found, expected = loaded.vae.state_dict(), model.vae.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(ConfigError, match="text_encoder_3"):
        load_model(request.getfixturevalue(layout), components=["text_encoder_3"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_come_in_the_wanted_precision(model, single_file, dtype):
    loaded = load_model(single_file, dtype=dtype)
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype
    for component, network in loaded.networks.items():
        wanted = vae_dtype if component == "vae" else dtype
        found = network.state_dict()
        assert {tensor.dtype for tensor in found.values()} == {wanted}
        for name, tensor in model.networks[component].state_dict().items():
            assert torch.equal(found[name], tensor.to(wanted))


def test_float16_autoencoder_is_refused_unless_its_files_declare_it_safe(copied):
    with pytest.raises(ConfigError, match="force_upcast"):
        load_model(copied, vae_dtype=torch.float16)
    config = json.loads((copied / "vae/config.json").read_text())
    (copied / "vae/config.json").write_text(json.dumps({**config, "force_upcast": False}))
    loaded = load_model(copied, dtype=torch.float16)
    assert loaded.vae_fp16_safe
    assert loaded.vae.dtype == torch.float16


def test_variant_reads_the_files_that_carry_its_name(base, tmp_path):
    export_model(base, tmp_path, dtype=torch.float16, variant="fp16")
    export_model(base, tmp_path)
    assert (tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    full, half = load_model(tmp_path), load_model(tmp_path, variant="fp16")
    assert full.digest == networks_digest(base.networks)
    assert half.digest != full.digest
    assert set(half.stored_dtypes.values()) == {torch.float16}


def test_variant_that_is_not_there_is_refused_with_what_is(folder):
    with pytest.raises(WeightsError, match=r"fp16\.safetensors is missing") as caught:
        load_model(folder, variant="fp16")
    assert "model.safetensors" in str(caught.value)


def test_sharded_folder_is_read_as_one(copied, folder):
    path = copied / UNET_FILE
    tensors = sorted(tensors_of(path).items())
    path.unlink()
    weight_map = {}
    for number, part in enumerate((tensors[:100], tensors[100:]), start=1):
        name = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        safetensors.torch.save_file(dict(part), path.with_name(name))
        weight_map.update(dict.fromkeys(dict(part), name))
    index = path.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert load_model(copied).digest == load_model(folder).digest


def test_folder_with_the_names_of_other_library_versions_is_read(copied, folder, model):
    if isinstance(model.text_1, CLIPTextModel):  # transformers 5 saves without "text_model."
        model.text_1.save_pretrained(copied / "text_encoder")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for name in [n for n in tensors if ".mid_block.attentions.0.to_" in n]:
            new = next(name.replace(k, v) for k, v in old.items() if f".{k}." in name)
            tensors[new] = tensors.pop(name)

    edit(copied / "vae/diffusion_pytorch_model.safetensors", rename)
    assert load_model(copied).digest == load_model(folder).digest


def test_missing_extra_and_misshapen_tensors_of_all_files_are_listed_at_once(copied):
    def damage_unet(tensors):
        tensors["surplus.weight"] = torch.zeros(1)
        del tensors["conv_in.bias"]

    def damage_vae(tensors):
        tensors["quant_conv.bias"] = torch.zeros(3)

    edit(copied / UNET_FILE, damage_unet)
    edit(copied / "vae/diffusion_pytorch_model.safetensors", damage_vae)

    with pytest.raises(WeightsError) as caught:
        load_model(copied)

    message = str(caught.value)
    assert "1 missing, 1 extra, 1 misshapen" in message
    assert "missing: unet: conv_in.bias" in message
    assert f"extra: {UNET_FILE}: surplus.weight" in message
    assert "quant_conv.bias is torch.float32 [3], expected [8]" in message


def test_many_missing_tensors_are_counted_and_the_first_are_listed(single_file, tmp_path):
    path = shutil.copy(single_file, tmp_path / "x.safetensors")

    def drop(tensors):
        for name in [n for n in tensors if n.startswith("first_stage_model.encoder.")]:
            del tensors[name]

    edit(path, drop)
    with pytest.raises(WeightsError, match="74 missing") as caught:
        load_model(path)
    assert str(caught.value).count("missing: first_stage_model.encoder.") == 20
    assert "and 54 more" in str(caught.value)


def test_tensor_of_whole_numbers_is_refused(copied):
    edit(copied / UNET_FILE, lambda t: t.update({"conv_in.bias": t["conv_in.bias"].long()}))
    with pytest.raises(WeightsError, match=r"conv_in\.bias is torch\.int64"):
        load_model(copied)


def test_constants_that_released_files_may_hold_are_tolerated_and_no_others(
    model, single_file, tmp_path
):
    path = shutil.copy(single_file, tmp_path / "x.safetensors")
    tower = {"base": "conditioner.embedders.1.model", "refiner": "conditioner.embedders.0.model"}
    constants = {
        f"{tower[model.kind]}.logit_scale": torch.tensor(4.6),
        "denoiser.sigmas": torch.rand(1000),
    }
    if model.kind == "base":
        positions = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
        constants[positions] = torch.arange(77)[None]
    edit(path, lambda tensors: tensors.update(constants))
    loaded = load_model(path)
    assert loaded.digest == load_model(single_file).digest

    edit(path, lambda tensors: tensors.update({"model_ema.decay": torch.tensor(0.9)}))
    with pytest.raises(WeightsError, match=r"extra: x\.safetensors: model_ema\.decay"):
        load_model(path)


def test_projection_stored_in_two_precisions_is_refused(copied):
    path = copied / "text_encoder_2/model.safetensors"
    name = "text_model.encoder.layers.0.self_attn.v_proj.weight"
    edit(path, lambda tensors: tensors.update({name: tensors[name].half()}))
    with pytest.raises(WeightsError, match="other parts of its projection"):
        load_model(copied)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickle_is_refused_with_a_way_to_convert_it(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="weights_only=True"):
        load_model(path)


def test_pickle_in_a_folder_and_pickle_in_disguise_are_refused(copied):
    path = copied / UNET_FILE
    torch.save(tensors_of(path), path)
    with pytest.raises(WeightsError, match="a pickle or zip archive"):
        load_model(copied)
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(WeightsError, match="weights_only=True"):
        load_model(copied)


def test_nothing_to_load_is_refused_with_what_could_be(tmp_path):
    with pytest.raises(WeightsError, match="embedded models tiny, tiny-refiner"):
        load_model(tmp_path / "nowhere")
    path = tmp_path / "lora.safetensors"
    safetensors.torch.save_file({"lora_unet_x.alpha": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="found tensors of lora_unet_x"):
        load_model(path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(WeightsError, match="found StableDiffusionPipeline, expected an SDXL"):
        load_model(tmp_path)


def test_cut_file_is_refused_before_it_is_read(copied):
    path = copied / UNET_FILE
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="copy it again") as caught:
        load_model(copied)
    assert UNET_FILE in str(caught.value)


MEMORY_PROBE = """
import sys
import sdxl_core.nets.build  # the libraries, which are no part of what is measured
from sdxl_core.nets.weights import load_model

def peak_bytes(field):
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024

before = peak_bytes("VmRSS")
model = load_model(sys.argv[1])
parameters = [p for network in model.networks.values() for p in network.parameters()]
print(peak_bytes("VmHWM") - before, sum(4 * p.numel() for p in parameters))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("layout", ["diffusers", "single-file"])
def test_peak_memory_of_a_load_is_the_weights_and_little(layout, tmp_path, mid_size_model):
    out = tmp_path / ("model" if layout == "diffusers" else "model.safetensors")
    export_model(mid_size_model, out, layout=layout)
    probe = [sys.executable, "-c", MEMORY_PROBE, str(out)]
    result = subprocess.run(probe, capture_output=True, text=True, check=True, timeout=300)
    peak_bytes, num_weight_bytes = map(int, result.stdout.split())
    assert num_weight_bytes > 400e6
    # Not twice: a mapped file or a second copy of the state would be. 60 MB for heap and code.
    assert peak_bytes < num_weight_bytes + 60e6
