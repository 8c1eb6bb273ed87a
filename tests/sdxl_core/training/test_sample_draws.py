"""What is random about a sample is a function of its seed."""

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.training.objective import REFINER_TIMESTEPS
from sdxl_core.training.sample_draws import (
    draw_for_samples,
    normals,
    posterior_latents,
    uniform,
)

SHAPE = (4, 6, 5)
SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(seeds=SEEDS, data=st.data())
def test_draw_of_a_sample_does_not_depend_on_its_neighbours(
    seeds: list[int], data: st.DataObject
) -> None:
    together = draw_for_samples(seeds, SHAPE)
    cut = data.draw(st.integers(0, len(seeds)))
    order = data.draw(st.permutations(range(len(seeds))))
    shuffled = [seeds[place] for place in order]
    apart = [draw_for_samples(part, SHAPE) for part in (shuffled[:cut], shuffled[cut:])]
    assert torch.equal(together.noise_BCHW[order], torch.cat([draw.noise_BCHW for draw in apart]))
    assert torch.equal(together.timestep_B[order], torch.cat([draw.timestep_B for draw in apart]))


def test_draw_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw_for_samples([1, 2], SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_draw_other_options_leave_noise_and_timestep_as_they_were() -> None:
    plain, offset = (draw_for_samples(range(50), SHAPE, offset_noise=level) for level in (0, 0.05))
    assert torch.equal(plain.timestep_B, offset.timestep_B)
    difference_BCHW = offset.noise_BCHW - plain.noise_BCHW
    torch.testing.assert_close(
        difference_BCHW, difference_BCHW[..., :1, :1].expand(50, *SHAPE), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("offset", ["per-channel", "scalar"])
def test_draw_offset_has_the_asked_spread_over_what_it_is_constant_over(offset: str) -> None:
    plain, drawn = (
        draw_for_samples(range(4000), (4, 1, 2), offset_noise=level, offset=offset).noise_BCHW  # type: ignore[arg-type]
        for level in (0.0, 0.5)
    )
    constants_BC = (drawn - plain)[:, :, 0, 0]
    assert constants_BC.std().item() == pytest.approx(0.5, rel=0.05)
    spread_over_channels = constants_BC.std(dim=1).mean().item()
    assert (spread_over_channels < 1e-6) == (offset == "scalar")


def test_draw_noise_is_standard_normal_and_unlike_that_of_other_purposes() -> None:
    noise = normals(range(2000), SHAPE, "noise")
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    kurtosis = noise.pow(4).mean().item()
    assert kurtosis == pytest.approx(3, abs=0.1)
    other = normals(range(2000), SHAPE, "posterior")
    assert (noise * other).mean().item() == pytest.approx(0, abs=0.01)
    next_sample = noise[1:] * noise[:-1]
    assert next_sample.mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("timesteps", [(0, 1000), REFINER_TIMESTEPS], ids=["base", "refiner"])
def test_draw_timesteps_are_uniform_over_the_range(timesteps: tuple[int, int]) -> None:
    first, end = timesteps
    drawn_B = draw_for_samples(range(20_000), (1, 1, 1), timesteps=timesteps).timestep_B
    assert drawn_B.dtype == torch.int64
    assert drawn_B.min() == first
    assert drawn_B.max() == end - 1
    counts = torch.histc(drawn_B.double(), bins=20, min=first, max=end).double()
    chi_squared = ((counts - 1000) ** 2 / 1000).sum().item()
    assert chi_squared < 43.8  # 19 degrees of freedom: one seed set in a thousand is above


@pytest.mark.parametrize("timesteps", [(5, 5), (0, 1001), (-1, 10)])
def test_draw_refuses_timesteps_that_the_schedule_has_not(timesteps: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="0 <= first < end <= 1000"):
        draw_for_samples([1], SHAPE, timesteps=timesteps)


def test_uniform_is_below_one_and_spread_evenly() -> None:
    values = torch.tensor([uniform(seed, "drop text") for seed in range(20_000)])
    assert values.min() >= 0
    assert values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=0.01)
    assert values.std().item() == pytest.approx(12**-0.5, abs=0.01)


def test_posterior_latents_have_the_distribution_that_the_autoencoder_gave() -> None:
    generator = torch.Generator().manual_seed(0)
    moments_BCHW = torch.randn(3, 8, 5, 4, generator=generator)
    seeds = [11, 12, 13]
    latents_BCHW = posterior_latents(moments_BCHW, seeds, scaling_factor=0.13025)
    expected = DiagonalGaussianDistribution(moments_BCHW)
    noise_BCHW = posterior_latents(torch.zeros_like(moments_BCHW), seeds, scaling_factor=1.0)
    torch.testing.assert_close(latents_BCHW, 0.13025 * (expected.mean + expected.std * noise_BCHW))
    many_BCHW = posterior_latents(
        moments_BCHW[:1].expand(4000, -1, -1, -1), range(4000), scaling_factor=1.0
    )
    torch.testing.assert_close(many_BCHW.mean(0), expected.mean[0], atol=0.2, rtol=0)
    torch.testing.assert_close(many_BCHW.std(0), expected.std[0], atol=0, rtol=0.1)


def test_posterior_latents_of_a_sample_change_with_its_seed_alone() -> None:
    moments_BCHW = torch.zeros(2, 8, 3, 3)
    first = posterior_latents(moments_BCHW, [1, 2], scaling_factor=1.0)
    second = posterior_latents(moments_BCHW, [7, 2], scaling_factor=1.0)
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
