"""The network that FID looks through: Inception of TensorFlow's 2015-12-05 release.

Its weights do not come with this project: they are a file of the user's,
``pt_inception-2015-12-05`` of pytorch-fid or torch-fidelity (the same bytes) as safetensors. The
network and its way of resizing are torch-fidelity's, which has the numbers of the TensorFlow
original.

Legend of shape suffixes: B batch, C the 3 colours, H height, W width, D the 2048 features.
"""

import io
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops
from sdxl_core.nets.weights_source import PICKLE_SUFFIXES, pickle_advice

declare_missing_torchvision_ops()
from torch_fidelity.feature_extractor_inceptionv3 import (  # noqa: E402  # after the operators
    FeatureExtractorInceptionV3,
)


class InceptionFeatures(nn.Module):
    """Finds the features of pictures; frozen.

    Args:
        network: torch-fidelity's.
    """

    num_features = 2048
    """Of each picture: the last layer's means over all places, which FID is defined on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns the features (B, 2048), float32, of uint8 pictures of any size."""
        with torch.no_grad():
            features_BD: Tensor = self.network(images_BCHW)[0]
        return features_BD


def load_inception(path: Path) -> InceptionFeatures:
    """Returns the network with the weights of a file, on the CPU.

    Args:
        path: safetensors with the names of pytorch-fid's ``pt_inception-2015-12-05``.

    Raises:
        WeightsError: the file cannot be read or has other weights.
    """
    if path.suffix in PICKLE_SUFFIXES:
        raise WeightsError(pickle_advice(str(path)))
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as weights: {error}") from error
    # The library takes what torch.save writes. Bytes that we wrote ourselves are safe to unpickle.
    written = io.BytesIO()
    torch.save(stored, written)
    written.seek(0)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            [f"{InceptionFeatures.num_features}"],
            feature_extractor_weights_path=written,
        )
    except RuntimeError as error:
        found = " ".join(str(error).split())
        raise WeightsError(
            f"{path}: found other weights, expected those of FID's Inception network "
            f"(pt_inception-2015-12-05 as safetensors; torchvision's are others): {found[:300]}"
        ) from error
    return InceptionFeatures(network)
