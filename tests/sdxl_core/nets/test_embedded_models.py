"""The weights inside the package: complete, small enough, and a model that knows its scenes."""

import importlib.resources
from pathlib import Path

import pytest

from sdxl_core.contract.request import Request
from sdxl_core.data.scene_captions import parse_caption
from sdxl_core.data.scene_checker import check_scene
from sdxl_core.diffusion.generate import generate
from sdxl_core.nets.presets import TINY, TINY_REFINER
from sdxl_core.nets.weights import load_model

ASSETS = Path(str(importlib.resources.files("sdxl_core"))) / "assets"
MOST_BYTES = 40_000_000


def test_embedded_weights_fit_in_forty_megabytes() -> None:
    files = [
        path for name in ("tiny", "tiny-refiner") for path in (ASSETS / name).rglob("*.safetensors")
    ]
    assert len(files) == 7
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_embedded_models_have_the_sizes_of_their_presets() -> None:
    assert load_model("tiny").preset == TINY
    assert load_model("tiny-refiner").preset == TINY_REFINER


@pytest.mark.slow
def test_embedded_base_paints_the_background_that_the_prompt_names() -> None:
    prompts = [
        f"a large {colour} circle in the center, on a {background} background"
        for background, colour in [("blue", "yellow"), ("red", "green"), ("black", "white")]
    ]
    requests = [
        Request(id=str(i), prompt=prompt, seed=i, height=128, width=128, steps=20)
        for i, prompt in enumerate(prompts)
    ]
    images = list(generate(requests, model=load_model("tiny"), slots=4))
    for prompt, image in zip(prompts, images, strict=True):
        description = parse_caption(prompt)
        assert description is not None
        assert image.rgb_HWC is not None
        verdict = check_scene(description, image.rgb_HWC)
        assert "background" not in verdict.wrong, (prompt, verdict)
