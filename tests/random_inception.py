"""FID's Inception network with random weights: the real one in all but what it has learnt."""

import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

declare_missing_torchvision_ops()
from torch_fidelity.feature_extractor_inceptionv3 import (  # noqa: E402  # after the operators
    FeatureExtractorInceptionV3,
)


def random_state() -> dict[str, Tensor]:
    """Weights that neither fade out nor blow up over the layers."""
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=nothing)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def write_random_inception(path: Path) -> Path:
    """Writes it as safetensors; 96 MB."""
    save_file(random_state(), path)
    return path
