"""The perceptual distance over networks that are plugged in."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from sdxl_core.contract.errors import WeightsError
from sdxl_core.training.perceptual import (
    PerceptualDistance,
    RandomFeatures,
    Vgg16Features,
    load_lpips,
)


def _pictures(num: int = 2, side_px: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num, 3, side_px, side_px, generator=generator) * 2 - 1


def test_distance_is_that_of_the_written_formula() -> None:
    def network(images_BCHW: Tensor) -> list[Tensor]:
        return [images_BCHW, images_BCHW[:, :2, ::2, ::2] + 0.5]

    weights = [torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, 3.0])]
    first, second = _pictures(4, 8).split(2)
    expected = torch.zeros(2)
    for b in range(2):
        for layer, weight_C in zip(range(2), weights, strict=True):
            ours, theirs = network(first)[layer][b], network(second)[layer][b]
            height, width = ours.shape[1:]
            for y in range(height):
                for x in range(width):
                    u = ours[:, y, x] / ours[:, y, x].norm()
                    v = theirs[:, y, x] / theirs[:, y, x].norm()
                    expected[b] += (weight_C * (u - v) ** 2).sum() / (height * width)
    found = PerceptualDistance(network, weights)(first, second)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_distance_is_zero_for_equal_pictures_and_the_same_both_ways() -> None:
    distance = PerceptualDistance(RandomFeatures())
    first, second = _pictures(4).split(2)
    assert distance(first, first).abs().max() == 0
    torch.testing.assert_close(distance(first, second), distance(second, first))
    assert (distance(first, second) > 0).all()


def test_random_features_are_the_same_everywhere_and_are_never_trained() -> None:
    torch.manual_seed(1)
    first = PerceptualDistance(RandomFeatures())
    torch.manual_seed(2)
    second = PerceptualDistance(RandomFeatures())
    pictures = _pictures(4)
    assert torch.equal(first(*pictures.split(2)), second(*pictures.split(2)))
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_random_features_see_lost_texture_and_are_blind_to_another_colour() -> None:
    distance = PerceptualDistance(RandomFeatures())
    pictures = 0.5 * _pictures(4)
    blurred = torch.nn.functional.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    error = (blurred - pictures).square().mean().sqrt()
    assert distance(pictures, blurred).mean() > 0.1
    assert distance(pictures, pictures + error).max() < 1e-6


def test_gradient_where_a_network_finds_nothing_is_finite() -> None:
    image = torch.zeros(1, 3, 8, 8, requires_grad=True)
    PerceptualDistance(lambda images_BCHW: [images_BCHW])(image, _pictures(1, 8)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_gradient_of_the_distance_leads_back_to_the_original() -> None:
    distance = PerceptualDistance(RandomFeatures())
    target = _pictures(1, 16)
    image = target + 0.5 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    image.requires_grad_(True)
    before = distance(image, target).item()
    optimizer = torch.optim.Adam([image], lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        distance(image, target).sum().backward()
        optimizer.step()
    assert distance(image, target).item() < 0.5 * before


def _backbone() -> nn.Sequential:
    torch.manual_seed(0)
    return make_layers(cfgs["D"])


def test_lpips_from_files_is_vgg16_of_torchvision_with_weighted_channels(tmp_path: Path) -> None:
    backbone = _backbone()
    stored = {f"features.{name}": tensor for name, tensor in backbone.state_dict().items()}
    channels = {
        f"lin{layer}.model.1.weight": torch.rand(1, width, 1, 1)
        for layer, width in enumerate((64, 128, 256, 512, 512))
    }
    save_file(stored, tmp_path / "vgg16.safetensors")
    save_file(channels, tmp_path / "lpips.safetensors")
    first, second = _pictures(2).split(1)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    expected, depth = 0.0, 0
    with torch.no_grad():
        ours, theirs = ((x - shift[:, None, None]) / scale[:, None, None] for x in (first, second))
        for place, layer in enumerate(backbone):
            ours, theirs = layer(ours), layer(theirs)
            if place in (3, 8, 15, 22, 29):  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
                u, v = (torch.nn.functional.normalize(x, dim=1) for x in (ours, theirs))
                weight = channels[f"lin{depth}.model.1.weight"]
                expected += torch.nn.functional.conv2d((u - v) ** 2, weight).mean().item()
                depth += 1
        found = load_lpips(tmp_path / "vgg16.safetensors", tmp_path / "lpips.safetensors")(
            first, second
        )
    assert depth == 5
    assert found.item() == pytest.approx(expected, rel=1e-3)


def test_lpips_from_wrong_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"something": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match=r"found no features\.0\.weight"):
        load_lpips(path, path)
    with pytest.raises(WeightsError, match=r"missing\.safetensors: cannot be read"):
        load_lpips(tmp_path / "missing.safetensors", path)


def test_a_pickle_is_refused_unopened_with_the_way_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "vgg16.pth"
    torch.save({"features.0.weight": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match=r"vgg16\.pth: a pickle can run any code.*Convert it"):
        load_lpips(path, path)


def test_vgg16_has_the_names_of_torchvision() -> None:
    names = {f"features.{name}" for name in _backbone().state_dict()}
    assert set(Vgg16Features().state_dict()) == names
