"""Toy models with random weights, and files that hold them. Shared: never write to them."""

import dataclasses
from pathlib import Path

import pytest

from sdxl_core.nets.model import SdxlModel, random_model
from sdxl_core.nets.presets import TINY, TINY_REFINER
from sdxl_core.nets.weights import export_model


@pytest.fixture(scope="session")
def base() -> SdxlModel:
    return random_model(TINY, seed=1)


@pytest.fixture(scope="session")
def refiner() -> SdxlModel:
    return random_model(TINY_REFINER, seed=2)


@pytest.fixture(scope="session", params=["base", "refiner"])
def model(request: pytest.FixtureRequest) -> SdxlModel:
    """Base and refiner in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def folder(model: SdxlModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` in the diffusers layout, float32."""
    out = tmp_path_factory.mktemp("diffusers") / model.kind
    export_model(model, out)
    return out


@pytest.fixture(scope="session")
def single_file(model: SdxlModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` in the single-file layout, float32."""
    out = tmp_path_factory.mktemp("single") / f"{model.kind}.safetensors"
    export_model(model, out, layout="single-file")
    return out


@pytest.fixture(scope="session")
def mid_size_model() -> SdxlModel:
    """Some 500 MB, in tensors that are each small."""
    unet = dataclasses.replace(TINY.unet, block_out_channels=(256, 512, 512))
    return random_model(dataclasses.replace(TINY, name="custom", unet=unet))
