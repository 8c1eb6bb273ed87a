"""A process that runs one network imports the library of that network."""

import subprocess
import sys

import pytest

from sdxl_core.nets.build import build_networks
from sdxl_core.nets.components import network_builders
from sdxl_core.nets.presets import TINY, TINY_REFINER
from sdxl_core.nets.weights import export_model

TEXT_LIBRARIES = {"open_clip", "timm", "transformers.models.clip.modeling_clip"}


@pytest.mark.parametrize("preset", [TINY, TINY_REFINER], ids=["base", "refiner"])
def test_builders_are_those_of_all_networks_in_the_same_order(preset):
    # Random weights depend on the order in which networks are built.
    assert list(network_builders(preset)) == list(build_networks(preset))


def test_builders_of_wanted_components_leave_the_others_out():
    assert list(network_builders(TINY, ["vae", "text_encoder"])) == ["text_encoder", "vae"]
    assert list(network_builders(TINY_REFINER, ["unet", "text_encoder"])) == ["unet"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("components", "spared"),
    [
        (["text_encoder", "text_encoder_2"], {"diffusers"}),
        (["unet"], TEXT_LIBRARIES),
        (["vae"], TEXT_LIBRARIES),
    ],
    ids=["text encoders", "unet", "vae"],
)
def test_loading_some_networks_imports_no_library_of_the_others(components, spared, base, tmp_path):
    export_model(base, tmp_path)
    code = (
        "import sys; from sdxl_core.nets.weights import load_model\n"
        f"load_model({str(tmp_path)!r}, components={components!r})\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & spared == set()
