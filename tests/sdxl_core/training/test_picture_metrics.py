"""PSNR and SSIM of decoded pictures."""

import math

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from sdxl_core.contract.errors import ConfigError
from sdxl_core.training.picture_metrics import frechet_distance, psnr, ssim


def _pictures(num: int, height_px: int = 14, width_px: int = 13) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num, 3, height_px, width_px, generator=generator) * 2 - 1


def test_psnr_of_a_known_error_is_its_decibels() -> None:
    first = _pictures(2)
    second = first + torch.tensor([0.02, 0.2])[:, None, None, None]
    assert psnr(first, second).tolist() == pytest.approx([40.0, 20.0], abs=1e-3)
    assert psnr(first / 2, second / 2, value_range=1.0).tolist() == pytest.approx(
        [40.0, 20.0], abs=1e-3
    )


def test_metrics_of_equal_pictures_are_perfect() -> None:
    first = _pictures(2)
    assert psnr(first, first).tolist() == [math.inf, math.inf]
    assert ssim(first, first).tolist() == pytest.approx([1.0, 1.0])


def test_ssim_is_the_mean_over_all_windows_inside_the_picture() -> None:
    """Written out window by window, as the paper has it."""
    first = _pictures(1)
    second = 0.7 * first + 0.3 * _pictures(2)[1:]
    distance_K = torch.arange(11, dtype=torch.float64) - 5
    gaussian_K = torch.exp(-(distance_K**2) / (2 * 1.5**2))
    weight_KK = torch.outer(gaussian_K, gaussian_K)
    weight_KK /= weight_KK.sum()
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for channel in range(3):
        for top in range(14 - 10):
            for left in range(13 - 10):
                x, y = (
                    image[0, channel, top : top + 11, left : left + 11].double()
                    for image in (first, second)
                )
                mx, my = (weight_KK * x).sum(), (weight_KK * y).sum()
                vx, vy = (weight_KK * (x - mx) ** 2).sum(), (weight_KK * (y - my) ** 2).sum()
                cov = (weight_KK * (x - mx) * (y - my)).sum()
                values.append(
                    (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
                )
    assert ssim(first, second).item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-6)


def test_ssim_of_flat_pictures_is_their_luminance_term() -> None:
    first, second = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), -0.25)
    c1 = (0.01 * 2) ** 2
    expected = (2 * 0.5 * -0.25 + c1) / (0.5**2 + 0.25**2 + c1)
    assert ssim(first, second).item() == pytest.approx(expected, rel=1e-6)


def test_ssim_of_a_pair_does_not_depend_on_its_neighbours() -> None:
    first, second = _pictures(6).split(3)
    together = ssim(first, second)
    alone = torch.cat([ssim(first[i : i + 1], second[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_ssim_of_pictures_smaller_than_the_window_is_refused() -> None:
    small = torch.zeros(1, 3, 10, 40)
    with pytest.raises(ConfigError, match="found pictures of 10x40 px"):
        ssim(small, small)


def _white(num: int, seed: int) -> Tensor:
    """Features (num, 3) whose mean is 0 and whose covariance is 1, to rounding."""
    generator = torch.Generator().manual_seed(seed)
    features_ND = torch.randn(num, 3, generator=generator, dtype=torch.float64)
    features_ND -= features_ND.mean(0)
    _, vectors = torch.linalg.eigh(features_ND.T @ features_ND)
    turned_ND = features_ND @ vectors
    return turned_ND / turned_ND.square().sum(0).div(num - 1).sqrt()


def test_frechet_distance_of_known_distributions_is_the_formula() -> None:
    """With covariances that commute, the distance of means plus that of standard deviations."""
    means, deviations = (
        torch.tensor([[1.0, 2, 3], [1, 4, 0]]),
        torch.tensor([[1.0, 2, 5], [3, 2, 1]]),
    )
    first, second = (
        _white(num, num) * deviation + mean
        for num, deviation, mean in zip((40, 70), deviations, means, strict=True)
    )
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(first, first.float()) == pytest.approx(0.0, abs=1e-4)


def test_frechet_distance_of_few_pictures_is_the_librarys() -> None:
    generator = torch.Generator().manual_seed(2)
    first = torch.rand(20, 300, generator=generator, dtype=torch.float64)
    second = first[:15] ** 2
    theirs = fid_statistics_to_metric(*map(fid_features_to_statistics, (first, second)), False)
    expected = theirs["frechet_inception_distance"]
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_needs_a_covariance() -> None:
    with pytest.raises(ConfigError, match="found 1 and 40 pictures, expected two or more"):
        frechet_distance(_white(40, 0)[:1], _white(40, 0))
