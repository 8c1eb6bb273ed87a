"""Pictures to latents and back, against diffusers, and pictures that are not finite."""

import copy

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from sdxl_core.nets.autoencoder import decode_latents, encode_image, sample_latents


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def latents(*, seed: int = 0, num_rows: int = 2, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, 4, 4, 6, generator=generator).to(dtype)


def test_decoded_pictures_are_those_of_diffusers(base):
    latents_BCHW = latents()
    rgb_BHWC, finite_B = decode_latents(base, latents_BCHW)

    decoded = base.vae.decode(latents_BCHW / base.vae.config.scaling_factor).sample
    expected = VaeImageProcessor().postprocess(decoded, output_type="np")
    torch.testing.assert_close(rgb_BHWC, torch.from_numpy(expected))
    assert rgb_BHWC.shape == (2, 32, 48, 3)
    assert rgb_BHWC.dtype == torch.float32
    assert finite_B.tolist() == [True, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_latent_that_is_not_finite_marks_its_row_and_no_other(base, bad):
    latents_BCHW = latents(num_rows=3)
    expected_BHWC, _ = decode_latents(base, latents_BCHW)
    latents_BCHW[1, 2, 0, 3] = bad

    rgb_BHWC, finite_B = decode_latents(base, latents_BCHW)

    assert finite_B.tolist() == [True, False, True]
    assert bool(torch.isfinite(rgb_BHWC).all())
    torch.testing.assert_close(rgb_BHWC[[0, 2]], expected_BHWC[[0, 2]])


def test_autoencoder_that_overflows_float16_marks_the_row(base):
    vae = copy.deepcopy(base.vae)
    vae.decoder.conv_in.weight.mul_(1e5)  # what the released one does to some pictures
    model = copy.copy(base)
    object.__setattr__(model, "vae", vae)
    assert decode_latents(model, latents())[1].tolist() == [True, True]
    vae.half()
    assert decode_latents(model, latents())[1].tolist() == [False, False]


@pytest.mark.parametrize("latent_dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_autoencoder_decodes_close_to_float32(base, latent_dtype):
    half = copy.copy(base)
    object.__setattr__(half, "vae", copy.deepcopy(base.vae).bfloat16())
    expected_BHWC, _ = decode_latents(base, latents())
    rgb_BHWC, finite_B = decode_latents(half, latents(dtype=latent_dtype))
    assert finite_B.all()
    assert rgb_BHWC.dtype == torch.float32
    torch.testing.assert_close(rgb_BHWC, expected_BHWC, atol=0.05, rtol=0)


def test_encoded_and_sampled_latents_are_those_of_diffusers(base):
    image_BCHW = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments_BCHW = encode_image(base.vae, image_BCHW)
    noise_BCHW = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(7))

    found_BCHW = sample_latents(moments_BCHW, noise_BCHW, scaling_factor=0.13025)

    distribution = base.vae.encode(image_BCHW).latent_dist
    expected_BCHW = distribution.sample(torch.Generator().manual_seed(7)) * 0.13025
    torch.testing.assert_close(found_BCHW, expected_BCHW)
    assert moments_BCHW.shape == (2, 8, 4, 6)


def test_variance_of_an_encoded_picture_is_bounded_as_in_the_original_code(base):
    vae = copy.deepcopy(base.vae)
    vae.quant_conv.bias[4:] = 1e4
    moments_BCHW = encode_image(vae, torch.zeros(1, 3, 16, 16))
    assert bool((moments_BCHW[:, 4:] == 20).all())
