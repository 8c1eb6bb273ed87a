"""The autoencoder's objective and the folding of the latents' statistics."""

import pytest
import torch

from sdxl_core.nets.build import build_vae
from sdxl_core.nets.presets import TINY
from sdxl_core.training.autoencoder import autoencoder_loss, edge_difference, standardise_latents


def test_edge_difference_ignores_a_constant_and_sees_a_step() -> None:
    flat = torch.zeros(1, 1, 8, 8)
    assert edge_difference(flat, flat + 0.5) == 0
    step = flat.clone()
    step[..., 4:] = 1.0
    assert edge_difference(flat, step).item() == pytest.approx(1 / 7)


def test_autoencoder_loss_is_the_weighted_sum_of_its_parts() -> None:
    torch.manual_seed(0)
    loss = autoencoder_loss(build_vae(TINY), torch.rand(2, 3, 32, 32) * 2 - 1, edge_weight=0.5)
    parts = loss.reconstruction + 0.5 * loss.edges + 1e-4 * loss.kl + 0.5 * loss.local_colour
    torch.testing.assert_close(loss.total, parts)
    loss.total.backward()


def test_standardise_latents_gives_the_asked_spread_and_keeps_the_pictures() -> None:
    torch.manual_seed(0)
    vae = build_vae(TINY)
    images_BCHW = torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(images_BCHW).latent_dist
        decoded = vae.decode(before.mean).sample
        mean_C, std_C = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
        standardise_latents(vae, mean_C, std_C, scaling_factor=0.25, spread=0.4)
        after = vae.encode(images_BCHW).latent_dist
        torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
        torch.testing.assert_close(
            0.25 * after.mean.std((0, 2, 3)), torch.full((4,), 0.4), atol=1e-3, rtol=0
        )
        torch.testing.assert_close(
            after.std / before.std, (1.6 / std_C)[None, :, None, None].expand_as(before.std)
        )
        torch.testing.assert_close(vae.decode(after.mean).sample, decoded, atol=1e-3, rtol=1e-3)
