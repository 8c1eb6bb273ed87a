"""FID's Inception network from a file of weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.inception import load_inception
from tests.random_inception import random_state


def test_features_are_those_of_the_library_with_the_same_weights(tmp_path: Path) -> None:
    state = random_state()
    safe, pickled = tmp_path / "fid.safetensors", tmp_path / "fid.pth"
    save_file(state, safe)
    torch.save(state, pickled)
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(pickled))
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (2, 3, 40, 64), generator=generator, dtype=torch.uint8)
    found = load_inception(safe)(images)
    assert found.shape == (2, 2048)
    assert torch.equal(found, theirs(images)[0])
    assert not torch.allclose(found[0], found[1])


def test_a_pickle_is_refused_and_not_read(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"fid\.pth: a pickle can run any code"):
        load_inception(tmp_path / "fid.pth")


def test_a_file_that_is_missing_or_no_safetensors_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not weights")
    for path in (tmp_path / "none.safetensors", broken):
        with pytest.raises(WeightsError, match=f"{path}: cannot be read as weights"):
            load_inception(path)


def test_other_weights_are_refused_with_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "torchvision.safetensors"
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"pt_inception-2015-12-05 .*Missing key"):
        load_inception(path)
