import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdxl_core.diffusion.guidance import apply_guidance, rescale_guidance

seeds = st.integers(0, 2**32)
scales = st.floats(0, 20, width=32)
shares = st.floats(0, 1, width=32)


def predictions(seed: int, num_rows: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_rows, 4, 6, 5, generator=generator).to(dtype) for _ in range(2)]


@given(seed=seeds, scale_B=st.lists(scales, min_size=3, max_size=3))
def test_guidance_is_the_formula_for_every_row(seed: int, scale_B: list[float]) -> None:
    cond, uncond = predictions(seed)
    guided = apply_guidance(cond, uncond, torch.tensor(scale_B))
    for row, scale in enumerate(scale_B):
        expected = uncond[row] + scale * (cond[row] - uncond[row])
        torch.testing.assert_close(guided[row], expected, rtol=1e-6, atol=2e-6)


@given(seed=seeds)
def test_guidance_of_scale_one_is_the_conditional_side_to_the_bit(seed: int) -> None:
    cond, uncond = predictions(seed)
    uncond[1] = torch.nan
    guided = apply_guidance(cond, uncond, torch.tensor([3.0, 1.0, 1.0]))
    assert torch.equal(guided[1:], cond[1:])
    assert not torch.equal(guided[0], cond[0])


@given(seed=seeds)
def test_guidance_of_scale_zero_is_the_unconditional_side(seed: int) -> None:
    cond, uncond = predictions(seed)
    assert torch.equal(apply_guidance(cond, uncond, torch.zeros(3)), uncond)


@given(seed=seeds, scale=scales)
def test_guidance_between_equal_sides_changes_nothing(seed: int, scale: float) -> None:
    cond, _ = predictions(seed)
    assert torch.equal(apply_guidance(cond, cond, torch.full((3,), scale)), cond)


@given(seed=seeds, scale=scales)
def test_guidance_with_its_sides_swapped_is_the_complementary_scale(
    seed: int, scale: float
) -> None:
    cond, uncond = (side.double() for side in predictions(seed))
    forward = apply_guidance(cond, uncond, torch.full((3,), scale, dtype=torch.float64))
    swapped = apply_guidance(uncond, cond, torch.full((3,), 1 - scale, dtype=torch.float64))
    torch.testing.assert_close(forward, swapped, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_guidance_of_half_types_is_computed_in_float32(dtype: torch.dtype) -> None:
    cond, uncond = predictions(0, dtype=dtype)
    scale_B = torch.tensor([7.3, 5.1, 2.9])
    guided = apply_guidance(cond, uncond, scale_B)
    assert guided.dtype == torch.float32
    assert torch.equal(guided, apply_guidance(cond.float(), uncond.float(), scale_B))


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 128, 128)])
@pytest.mark.parametrize("num_rows", [2, 5, 16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_row_has_the_same_bits_alone_and_among_others(
    shape: tuple[int, int, int], num_rows: int, device: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    cond, uncond = torch.randn(2, num_rows, *shape, generator=generator).to(device)
    scale_B = torch.linspace(0.5, 9, num_rows, device=device)
    rescale_B = torch.linspace(0, 1, num_rows, device=device)
    guided = apply_guidance(cond, uncond, scale_B)
    together = rescale_guidance(guided, cond, rescale_B)
    for row in range(num_rows):
        only = slice(row, row + 1)
        alone = apply_guidance(cond[only], uncond[only], scale_B[only])
        assert torch.equal(alone, guided[only])
        assert torch.equal(rescale_guidance(alone, cond[only], rescale_B[only]), together[only])


@given(seed=seeds, scale=scales, rescale=st.floats(0.01, 1))
def test_rescale_of_zero_is_the_same_bits_beside_rows_that_are_rescaled(
    seed: int, scale: float, rescale: float
) -> None:
    cond, uncond = predictions(seed)
    guided = apply_guidance(cond, uncond, torch.full((3,), scale))
    guided[0, 0] = -0.0
    cond[2] = torch.inf
    found = rescale_guidance(guided, cond, torch.tensor([0.0, rescale, 0.0]))
    untouched = [0, 2]
    assert torch.equal(found[untouched].view(torch.int32), guided[untouched].view(torch.int32))


@given(seed=seeds, factor=st.floats(0.1, 30))
def test_rescale_of_one_gives_the_spread_of_the_conditional_side(seed: int, factor: float) -> None:
    cond, uncond = predictions(seed)
    found = rescale_guidance(factor * uncond, cond, torch.ones(3))
    torch.testing.assert_close(found.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))


@given(seed=seeds, rescale=shares, factor=st.floats(0.1, 30))
def test_rescale_only_stretches_a_row(seed: int, rescale: float, factor: float) -> None:
    cond, uncond = predictions(seed)
    guided = factor * uncond
    found = rescale_guidance(guided, cond, torch.full((3,), rescale))
    stretch_B = found.std(dim=(1, 2, 3)) / guided.std(dim=(1, 2, 3))
    torch.testing.assert_close(found, guided * stretch_B[:, None, None, None])


def test_rescale_of_a_row_without_spread_leaves_it_as_it_is() -> None:
    guided, cond = torch.zeros(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    assert torch.equal(rescale_guidance(guided, cond, torch.ones(1)), guided)


def test_rescale_agrees_with_diffusers() -> None:
    from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

    declare_missing_torchvision_ops()
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
        rescale_noise_cfg,
    )

    cond, uncond = predictions(0)
    guided = apply_guidance(cond, uncond, torch.full((3,), 7.5))
    rescale_B = torch.tensor([0.2, 0.7, 1.0])
    found = rescale_guidance(guided, cond, rescale_B)
    for row, rescale in enumerate(rescale_B.tolist()):
        only = slice(row, row + 1)
        expected = rescale_noise_cfg(guided[only], cond[only], rescale)
        torch.testing.assert_close(found[only], expected, rtol=1e-6, atol=1e-6)
