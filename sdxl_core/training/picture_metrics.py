"""How close decoded pictures are to their originals: PSNR and SSIM of each, the Fréchet distance of
all.

Legend of shape suffixes: B batch, C channels, H height, W width, K side of the window, N pictures,
D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdxl_core.contract.errors import ConfigError

_WINDOW_PX, _WINDOW_SIGMA_PX = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr(first_BCHW: Tensor, second_BCHW: Tensor, *, value_range: float = 2.0) -> Tensor:
    """Returns the peak signal-to-noise ratio of each pair of pictures in dB, (B) float32.

    Args:
        first_BCHW: pictures.
        second_BCHW: pictures to compare with; equal ones give infinity.
        value_range: largest minus smallest value that a picture can have: 2 for [-1, 1].
    """
    error_B = (first_BCHW.float() - second_BCHW.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(value_range**2 / error_B)


def ssim(first_BCHW: Tensor, second_BCHW: Tensor, *, value_range: float = 2.0) -> Tensor:
    """Returns the structural similarity of each pair of pictures, (B) float32, 1 for equal ones.

    As first published (Wang et al. 2004, doi:10.1109/TIP.2003.819861): Gaussian windows of 11 px
    and 1.5 px standard deviation that lie wholly inside the picture, for each channel by itself.

    Args:
        first_BCHW: pictures.
        second_BCHW: pictures to compare with.
        value_range: largest minus smallest value that a picture can have: 2 for [-1, 1].

    Raises:
        ConfigError: the pictures are smaller than the window.
    """
    height_px, width_px = first_BCHW.shape[-2:]
    if min(height_px, width_px) < _WINDOW_PX:
        raise ConfigError(
            f"ssim: found pictures of {height_px}x{width_px} px, expected sides of at least "
            f"{_WINDOW_PX} px, the window's"
        )
    first, second = first_BCHW.double(), second_BCHW.double()
    mean_1, mean_2 = _window_mean(first), _window_mean(second)
    variance_1 = _window_mean(first.square()) - mean_1.square()
    variance_2 = _window_mean(second.square()) - mean_2.square()
    covariance = _window_mean(first * second) - mean_1 * mean_2
    c1, c2 = (_K1 * value_range) ** 2, (_K2 * value_range) ** 2
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1.square() + mean_2.square() + c1)
    structure = (2 * covariance + c2) / (variance_1 + variance_2 + c2)
    return (luminance * structure).flatten(1).mean(1).float()


def frechet_distance(first_ND: Tensor, second_ND: Tensor) -> float:
    """Returns the squared Fréchet distance of two normal distributions that have the means and
    covariances of these features: FID (arXiv:1706.08500, equation 6) if they are Inception's.

    It falls with the number of pictures: only distances of equally many compare.

    Args:
        first_ND: features of pictures.
        second_ND: features of other pictures; their number may differ.

    Raises:
        ConfigError: fewer than two pictures, which have no covariance.
    """
    # Imported here: it brings torchvision, which takes seconds that few processes need to spend.
    from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

    declare_missing_torchvision_ops()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    if min(len(first_ND), len(second_ND)) < 2:
        raise ConfigError(
            f"Fréchet distance: found {len(first_ND)} and {len(second_ND)} pictures, expected two "
            "or more of each"
        )
    both = [features_ND.double().cpu() for features_ND in (first_ND, second_ND)]
    if sum(map(len, both)) < both[0].shape[1]:
        # A few pictures span a small space, and turning it changes no distance: there the library
        # takes the root of a small matrix instead of one that is nearly all zeros.
        basis_DN = torch.linalg.qr(torch.cat(both).T).Q
        both = [features_ND @ basis_DN for features_ND in both]
    statistics = [fid_features_to_statistics(features_ND) for features_ND in both]
    (distance,) = fid_statistics_to_metric(*statistics, verbose=False).values()
    return float(distance)


def _window_mean(values_BCHW: Tensor) -> Tensor:
    """Means under the Gaussian window at every place where it fits."""
    places_K = torch.arange(_WINDOW_PX, dtype=values_BCHW.dtype, device=values_BCHW.device)
    weight_K = torch.exp(-((places_K - _WINDOW_PX // 2) ** 2) / (2 * _WINDOW_SIGMA_PX**2))
    weight_K = weight_K / weight_K.sum()
    channels = values_BCHW.shape[1]
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        kernel = weight_K.reshape(shape).expand(channels, -1, -1, -1)
        values_BCHW = F.conv2d(values_BCHW, kernel, groups=channels)
    return values_BCHW
