"""Key maps against diffusers' own conversion of single files, and counts of the released files."""

import functools
import itertools

import pytest
import torch
from diffusers.loaders import single_file_utils
from transformers import CLIPTextModelWithProjection

from sdxl_core.nets.build import build_networks, clip_text_config
from sdxl_core.nets.layouts import (
    Slot,
    diffusers_slots,
    network_shapes,
    single_file_prefixes,
    single_file_slots,
)
from sdxl_core.nets.model import SdxlModel, random_model
from sdxl_core.nets.presets import (
    SDXL_BASE,
    SDXL_REFINER,
    TINY,
    TINY_REFINER,
    ModelPreset,
)

TINY_PRESETS = pytest.mark.parametrize("preset", [TINY, TINY_REFINER], ids=lambda p: p.name)
FULL_PRESETS = pytest.mark.parametrize("preset", [SDXL_BASE, SDXL_REFINER], ids=lambda p: p.name)


@functools.cache
def meta_shapes(preset: ModelPreset):
    with torch.device("meta"):
        return network_shapes(build_networks(preset))


def stored(model: SdxlModel, slots: list[Slot]) -> dict[str, torch.Tensor]:
    """The tensors that a file with these slots would hold."""
    tensors = {name: network.state_dict() for name, network in model.networks.items()}
    return {s.stored_name: s.view(tensors[s.component][s.network_name]) for s in slots}


def single_file_tensors(model: SdxlModel) -> dict[str, torch.Tensor]:
    return stored(model, single_file_slots(model.preset, network_shapes(model.networks)))


def diffusers_tensors(model: SdxlModel, component: str) -> dict[str, torch.Tensor]:
    return stored(model, diffusers_slots(network_shapes(model.networks))[component])


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@TINY_PRESETS
def test_unet_names_agree_with_the_conversion_of_diffusers(preset):
    model = random_model(preset)
    converted = single_file_utils.convert_ldm_unet_checkpoint(
        single_file_tensors(model), config=dict(model.unet.config)
    )
    assert_same_tensors(converted, diffusers_tensors(model, "unet"))
    assert_same_tensors(converted, model.unet.state_dict())


@TINY_PRESETS
def test_autoencoder_names_and_shapes_agree_with_the_conversion_of_diffusers(preset):
    model = random_model(preset)
    converted = single_file_utils.convert_ldm_vae_checkpoint(
        single_file_tensors(model), config=dict(model.vae.config)
    )
    assert_same_tensors(converted, diffusers_tensors(model, "vae"))


def test_text_1_names_agree_with_the_conversion_of_diffusers():
    model = random_model(TINY)
    converted = single_file_utils.convert_ldm_clip_checkpoint(single_file_tensors(model))
    assert_same_tensors(converted, diffusers_tensors(model, "text_encoder"))


@TINY_PRESETS
def test_text_2_names_and_split_agree_with_the_conversion_of_diffusers(preset):
    model = random_model(preset)
    target = CLIPTextModelWithProjection(clip_text_config(preset.text_2))
    converted = single_file_utils.convert_open_clip_checkpoint(
        target,
        single_file_tensors(model),
        prefix=single_file_prefixes(preset)["text_encoder_2"],
    )
    assert_same_tensors(converted, diffusers_tensors(model, "text_encoder_2"))
    target.load_state_dict(converted, strict=True)


@FULL_PRESETS
def test_full_size_single_file_is_recognised_and_converted_by_diffusers(preset):
    with torch.device("meta"):
        model = random_model(preset)
    tensors = single_file_tensors(model)
    kind = single_file_utils.infer_diffusers_model_type(tensors)
    assert kind == {"base": "xl_base", "refiner": "xl_refiner"}[preset.kind]

    converted = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(
            tensors, config=dict(model.unet.config)
        ),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(tensors, config=dict(model.vae.config)),
    }
    for component, found in converted.items():
        expected = diffusers_tensors(model, component)
        assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}


# The counts of the released files; 2515 and 1858 less position_ids and logit_scale, which are not
# weights.
@pytest.mark.parametrize(
    ("preset", "counts", "single_file_count"),
    [
        (
            SDXL_BASE,
            {"text_encoder": 196, "text_encoder_2": 517, "unet": 1680, "vae": 248},
            2515 - 2,
        ),
        (SDXL_REFINER, {"text_encoder_2": 517, "unet": 1220, "vae": 248}, 1858 - 1),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_full_size_layouts_have_as_many_tensors_as_the_released_files(
    preset, counts, single_file_count
):
    shapes = meta_shapes(preset)
    assert {c: len(slots) for c, slots in diffusers_slots(shapes).items()} == counts
    assert len(single_file_slots(preset, shapes)) == single_file_count


# Facts of the released files, from the layer map of the original constructor.
@pytest.mark.parametrize(
    ("preset", "name", "shape"),
    [
        (SDXL_BASE, "model.diffusion_model.label_emb.0.0.weight", (1280, 2816)),
        (SDXL_BASE, "model.diffusion_model.output_blocks.2.2.conv.weight", (1280, 1280, 3, 3)),
        (
            SDXL_BASE,
            "model.diffusion_model.output_blocks.3.0.in_layers.2.weight",
            (640, 1920, 3, 3),
        ),
        (SDXL_BASE, "conditioner.embedders.1.model.text_projection", (1280, 1280)),
        (SDXL_BASE, "first_stage_model.decoder.mid.attn_1.proj_out.weight", (512, 512, 1, 1)),
        (SDXL_BASE, "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight", (128, 256, 1, 1)),
        (SDXL_REFINER, "model.diffusion_model.label_emb.0.0.weight", (1536, 2560)),
        (SDXL_REFINER, "model.diffusion_model.output_blocks.2.1.conv.weight", (1536, 1536, 3, 3)),
        (SDXL_REFINER, "model.diffusion_model.output_blocks.5.2.conv.weight", (1536, 1536, 3, 3)),
        (SDXL_REFINER, "model.diffusion_model.input_blocks.9.0.op.weight", (1536, 1536, 3, 3)),
        (
            SDXL_REFINER,
            "conditioner.embedders.0.model.transformer.resblocks.31.attn.in_proj_weight",
            (3840, 1280),
        ),
    ],
)
def test_full_size_single_file_has_the_released_tensor(preset, name, shape):
    found = {s.stored_name: s.stored_shape for s in single_file_slots(preset, meta_shapes(preset))}
    assert found[name] == shape


@TINY_PRESETS
def test_every_number_of_the_networks_is_in_exactly_one_slot_of_each_layout(preset):
    model = random_model(preset)
    shapes = network_shapes(model.networks)
    diffusers = itertools.chain.from_iterable(diffusers_slots(shapes).values())
    for slots in (diffusers, single_file_slots(preset, shapes)):
        counts = {
            name: {n: torch.zeros_like(t) for n, t in network.state_dict().items()}
            for name, network in model.networks.items()
        }
        for slot in slots:
            slot.view(counts[slot.component][slot.network_name]).add_(1)
        for tensors in counts.values():
            assert all(bool((tensor == 1).all()) for tensor in tensors.values())
