import torch

from sdxl_core.training.scene_autoencoder import draw_crops, num_edges, render_pool


def test_edges_are_counted_on_outlines_and_not_in_faint_noise() -> None:
    flat_CHW = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    square_CHW = flat_CHW.clone()
    square_CHW[:, 4:8, 4:8] = 200
    noise_CHW = flat_CHW + torch.randint(0, 19, flat_CHW.shape, dtype=torch.uint8)
    assert num_edges(flat_CHW) == num_edges(noise_CHW) == 0
    assert num_edges(square_CHW) == 16


def test_crops_are_parts_of_the_pictures_and_prefer_edges() -> None:
    torch.manual_seed(0)
    pool_NCHW = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    pool_NCHW[:, :, 20:30, 40:50] = 255
    crops_BCHW = draw_crops(pool_NCHW, 200, crop_px=16)
    assert crops_BCHW.shape == (200, 3, 16, 16)
    assert set(crops_BCHW.unique().tolist()) == {-1.0, 1.0}
    share_with_edges = float((crops_BCHW > 0).flatten(1).any(1).float().mean())
    by_chance = 24 * 24 / 49**2
    assert share_with_edges > 1.8 * by_chance


def test_pool_has_pictures_that_differ_and_is_the_same_for_the_same_seed() -> None:
    pool_NCHW = render_pool(4, seed=3)
    assert pool_NCHW.shape == (4, 3, 128, 128)
    assert torch.equal(pool_NCHW, render_pool(4, seed=3))
    assert not torch.equal(pool_NCHW[0], pool_NCHW[1])
