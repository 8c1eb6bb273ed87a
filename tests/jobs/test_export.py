"""The command ``sdxl export``."""

import json
from pathlib import Path

import pytest
import torch

from jobs.__main__ import main
from sdxl_core.nets.model import SdxlModel, random_model
from sdxl_core.nets.presets import TINY
from sdxl_core.nets.weights import export_model, load_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    export_model(random_model(TINY, seed=1), folder)
    return folder


def unet_weight(model: SdxlModel) -> torch.Tensor:
    weight: torch.Tensor = model.unet.conv_in.weight
    return weight.detach()


def test_model_comes_back_equal_through_a_single_file_and_a_folder(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = str(tmp_path / "one.safetensors"), str(tmp_path / "folder")
    assert main(["export", str(checkpoint), file, "--layout", "single-file"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["model_kind"] == "base"
    assert main(["export", file, folder, "--layout", "diffusers"]) == 0
    first, last = load_model(checkpoint), load_model(folder)
    assert first.digest == last.digest == summary["source_digest"]
    assert torch.equal(unet_weight(first), unet_weight(last))


def test_dtype_is_that_of_the_written_tensors(checkpoint: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "half")
    command = f"export {checkpoint} {out} --layout diffusers --dtype bfloat16"
    assert main(command.split()) == 0
    half = load_model(out)
    expected = unet_weight(load_model(checkpoint)).bfloat16().float()
    assert torch.equal(unet_weight(half), expected)
    assert set(half.stored_dtypes.values()) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("nowhere out --layout diffusers", "nowhere"),
        ("tiny out --layout single-file", ".safetensors, got out"),
        ("tiny out.safetensors --layout diffusers", "needs a folder"),
        ("tiny out.safetensors --layout lora", "needs a folder"),
        ("tiny out --layout lora", "tiny is no training checkpoint"),
    ],
)
def test_wrong_export_is_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments.split()]) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
