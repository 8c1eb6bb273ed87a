"""What a model in memory says of itself."""

import dataclasses

import pytest
import torch

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.digest import networks_digest
from sdxl_core.nets.model import check_vae_dtype, default_vae_dtype, random_model
from sdxl_core.nets.presets import TINY_REFINER, ModelPreset


def declared(preset: ModelPreset, *, safe: bool) -> ModelPreset:
    vae = dataclasses.replace(preset.vae, force_upcast=not safe)
    return dataclasses.replace(preset, vae=vae)


def test_random_model_depends_on_its_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (
        networks_digest(random_model(TINY_REFINER, seed=s).networks) for s in (3, 3, 4)
    )
    assert torch.rand(1) == expected
    assert first == again != other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("safe", [True, False])
def test_autoencoder_runs_in_float32_and_bfloat16_always(refiner, dtype, safe):
    model = dataclasses.replace(refiner, preset=declared(refiner.preset, safe=safe))
    check_vae_dtype(model, dtype)
    assert default_vae_dtype(model.preset, dtype) == dtype


def test_autoencoder_runs_in_float16_only_where_that_is_declared_safe(refiner):
    safe = dataclasses.replace(refiner, preset=declared(refiner.preset, safe=True))
    unsafe = dataclasses.replace(refiner, preset=declared(refiner.preset, safe=False))
    check_vae_dtype(safe, torch.float16)
    assert (safe.vae_fp16_safe, unsafe.vae_fp16_safe) == (True, False)
    assert default_vae_dtype(safe.preset, torch.float16) == torch.float16
    assert default_vae_dtype(unsafe.preset, torch.float16) == torch.float32
    with pytest.raises(ConfigError, match="black images"):
        check_vae_dtype(unsafe, torch.float16)


def test_other_precisions_of_the_autoencoder_are_refused(refiner):
    with pytest.raises(ConfigError, match="float64"):
        check_vae_dtype(refiner, torch.float64)


def test_networks_are_named_as_the_folders_of_the_diffusers_layout(base, refiner):
    assert list(base.networks) == ["text_encoder", "text_encoder_2", "unet", "vae"]
    assert list(refiner.networks) == ["text_encoder_2", "unet", "vae"]
    assert (base.kind, refiner.kind) == ("base", "refiner")
