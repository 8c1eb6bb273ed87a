"""How different two pictures look: distances between the features that a network finds in them.

The distance is LPIPS (arXiv:1801.03924) if the network is VGG-16 with ImageNet's weights and the
channels have LPIPS's weights. Neither comes with this project. Without them the features are those
of a fixed random network that looks at edges and texture and is blind to a shift of colour: a use
to training beside L1, but it is not LPIPS, and its values compare with nobody's.

Legend of shape suffixes: B batch, C channels, H height, W width; the features of layers differ in
all but B.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.weights_source import PICKLE_SUFFIXES, pickle_advice

FeatureNetwork = Callable[[Tensor], Sequence[Tensor]]
"""From pictures in [-1, 1] to the features of some layers, each (B, C, H, W)."""

# VGG-16 after its first convolution: outputs of its layers, "M" halves the picture.
_VGG_16: tuple[int | str, ...] = (
    *(64, 64, "M", 128, 128, "M", 256, 256, 256, "M"),
    *(512, 512, 512, "M", 512, 512, 512),
)
_VGG_CHANNELS = (64, 128, 256, 512, 512)
_TINY = 1e-8
_FLOOR = 0.1
# ImageNet's mean and spread of colours, in [-1, 1], as LPIPS has them.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class PerceptualDistance(nn.Module):
    """Sum over layers of the mean squared difference of features of unit length.

    Its parameters, if the network has any, are frozen.
    """

    def __init__(
        self, network: FeatureNetwork, channel_weights: Sequence[Tensor] | None = None
    ) -> None:
        """Takes a network.

        Args:
            network: finds the features.
            channel_weights: weight of each channel (C) of each layer, >= 0; None is 1 for all.
        """
        super().__init__()
        self.network = network
        if isinstance(network, nn.Module):
            network.requires_grad_(False).eval()
        self.num_weights = len(channel_weights or ())
        for layer, weight_C in enumerate(channel_weights or ()):
            self.register_buffer(f"weight_{layer}", weight_C.float(), persistent=False)

    def forward(self, first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
        """Returns the distance of each pair of pictures in [-1, 1], (B) float32, >= 0."""
        batch_size = len(first_BCHW)
        distance_B = torch.zeros(batch_size, device=first_BCHW.device)
        both = torch.cat([first_BCHW.float(), second_BCHW.float()])
        for layer, features in enumerate(self.network(both)):
            # Where all is 0, a bare root would have a gradient that is not finite.
            unit = features * (features.square().sum(1, keepdim=True) + _TINY).rsqrt()
            first, second = unit.split(batch_size)
            squared_BCHW = (first - second).square()
            if self.num_weights:
                weight_C = self.get_buffer(f"weight_{layer}")
                squared_BCHW = squared_BCHW * weight_C[:, None, None]
            distance_B = distance_B + squared_BCHW.sum(1).mean((1, 2))
        return distance_B


class RandomFeatures(nn.Module):
    """Features of a small network of convolutions whose weights are drawn from a seed, untrained.

    It takes the place of a trained network where no weights are at hand. The filters of the first
    layer sum to 0 over their window, so flat colour gives nothing; a constant beside what they find
    keeps faint noise from counting as much as strong edges.
    """

    def __init__(self, *, seed: int = 0, num_channels: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        widths = (3, *num_channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(narrow, wide, 3, padding=1, padding_mode="replicate")
            for narrow, wide in zip(widths, num_channels, strict=False)
        )
        with torch.no_grad():
            for layer, convolution in enumerate(self.convolutions):
                weight, bias = convolution.weight, convolution.bias
                assert isinstance(weight, Tensor)
                assert isinstance(bias, Tensor)
                nn.init.kaiming_normal_(weight, generator=generator)
                nn.init.constant_(bias, _FLOOR)
                if layer == 0:
                    weight -= weight.mean((2, 3), keepdim=True)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Returns the features of each layer; every layer has half the size of the one before."""
        features, found = images_BCHW, []
        for layer, convolution in enumerate(self.convolutions):
            if layer:
                features = nn.functional.avg_pool2d(features, 2)
            features = torch.relu(convolution(features))
            found.append(features)
        return found


class Vgg16Features(nn.Module):
    """Features of VGG-16 before each of its halvings and at its end, as LPIPS takes them.

    The names of its weights are torchvision's. They are random until ``load_lpips`` fills them.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        layers: list[nn.Module] = []
        width = 3
        for wider in _VGG_16:
            if isinstance(wider, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
                width = wider
        self.features = nn.Sequential(*layers)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Returns the features of five depths for pictures in [-1, 1]."""
        features, found = (images_BCHW - self.shift) / self.scale, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(features)
            features = layer(features)
        return [*found, features]


def load_lpips(vgg_path: Path, channels_path: Path) -> PerceptualDistance:
    """Returns LPIPS from files of weights.

    Args:
        vgg_path: torchvision's VGG-16 as safetensors; its classifier is not used.
        channels_path: the channels' weights of LPIPS 0.1 for VGG (``vgg.pth`` of its package) as
            safetensors.

    Raises:
        WeightsError: a file cannot be read or lacks weights.
    """
    network = Vgg16Features()
    stored, linear = _read_tensors(vgg_path), _read_tensors(channels_path)
    wanted = network.state_dict()
    names = [f"lin{layer}.model.1.weight" for layer in range(len(_VGG_CHANNELS))]
    missing = [name for name in wanted if name not in stored]
    missing += [name for name in names if name not in linear]
    if missing:
        raise WeightsError(
            f"{vgg_path}, {channels_path}: found no {', '.join(missing[:3])}, expected "
            "torchvision's VGG-16 in the first file and LPIPS 0.1 for VGG in the second"
        )
    network.load_state_dict({name: stored[name] for name in wanted})
    return PerceptualDistance(network, [linear[name].flatten() for name in names])


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix in PICKLE_SUFFIXES:
        raise WeightsError(pickle_advice(str(path)))
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be read as weights: {error}") from error
