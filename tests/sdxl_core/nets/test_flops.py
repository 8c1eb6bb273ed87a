"""Operation counts against measured and hand-counted ones."""

import pytest

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.flops import text_flops, unet_flops, vae_decode_flops, vae_encode_flops
from sdxl_core.nets.presets import SDXL_BASE, SDXL_REFINER, TINY


# Tera-operations at 1024x1024, a multiply-add counted as two.
@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (lambda: unet_flops(SDXL_BASE, 1024, 1024), 6.76e12),
        (lambda: unet_flops(SDXL_BASE, 640, 1536), 6.30e12),
        (lambda: unet_flops(SDXL_REFINER, 1024, 1024), 7.29e12),
        (lambda: vae_decode_flops(SDXL_BASE, 1024, 1024), 10.5e12),
        (lambda: text_flops(SDXL_BASE), 0.11e12),
    ],
    ids=["base", "base-wide", "refiner", "decode", "text"],
)
def test_full_size_counts_are_the_known_ones_within_two_percent(count, expected):
    assert count() == pytest.approx(expected, rel=0.02 if expected < 1e12 else 0.01)


def test_text_count_is_that_of_its_matrix_products():
    def tower(sizes):
        per_layer = 4 * sizes.width**2 + 2 * sizes.width * sizes.mlp_width
        attention = 2 * sizes.num_positions * sizes.width
        return sizes.num_layers * sizes.num_positions * (per_layer + attention)

    towers = tower(SDXL_BASE.text_1) + tower(SDXL_BASE.text_2)
    projection = SDXL_BASE.text_2.width * SDXL_BASE.text_2.projection_width
    assert text_flops(SDXL_BASE) == 2 * (towers + projection)


def test_autoencoder_work_grows_with_the_area_and_a_little_for_its_attention():
    small, large = (vae_decode_flops(TINY, side, side) for side in (64, 128))
    assert 4 * small < large < 4.5 * small
    assert vae_encode_flops(TINY, 128, 128) < large


@pytest.mark.parametrize("size", [(0, 64), (64, -8), (100, 64), (64, 1023)])
def test_size_that_is_no_multiple_of_eight_is_refused(size):
    with pytest.raises(ConfigError, match="multiples of 8"):
        unet_flops(TINY, *size)
