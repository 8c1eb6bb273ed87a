"""The last function before the bytes."""

import numpy as np
import torch

from sdxl_core.diffusion.decoding import decode_error, decode_row, denoise_error
from sdxl_core.diffusion.engine import OutOfMemoryRow
from sdxl_core.diffusion.tasks import DenoiseResult
from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops
from tests.micro_models import micro_model

declare_missing_torchvision_ops()

from diffusers.image_processor import VaeImageProcessor  # noqa: E402

MODEL = micro_model("base")


def latents(seed: int, height: int = 8, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, height, width, generator=generator)


def result(*, is_finite: bool) -> DenoiseResult:
    return DenoiseResult(
        key="0",
        latents_CHW=latents(0),
        num_draws_done=1,
        num_slots=1,
        seconds=0.0,
        is_finite=is_finite,
    )


def test_a_picture_has_the_bytes_that_diffusers_makes_of_the_same_latents():
    rgb_HWC, is_finite = decode_row(MODEL, latents(0), device="cpu")

    with torch.inference_mode():
        scaled = latents(0)[None] / MODEL.vae.config.scaling_factor
        decoded_BCHW = MODEL.vae.decode(scaled, return_dict=False)[0]
    (expected,) = VaeImageProcessor().postprocess(decoded_BCHW, output_type="pil")
    assert is_finite
    assert rgb_HWC.dtype == np.uint8
    np.testing.assert_array_equal(rgb_HWC, np.asarray(expected))
    assert rgb_HWC.std() > 20  # a picture, not one colour


def test_a_picture_is_contiguous_rows_of_height_by_width():
    rgb_HWC, _ = decode_row(MODEL, latents(1, 8, 12), device="cpu")

    assert rgb_HWC.shape == (64, 96, 3)
    assert rgb_HWC.flags.c_contiguous


def test_latents_that_are_not_finite_are_told():
    bad = latents(2)
    bad[0, 0, 0] = float("nan")

    rgb_HWC, is_finite = decode_row(MODEL, bad, device="cpu")

    assert not is_finite
    assert rgb_HWC.shape == (64, 96, 3)
    assert decode_error(MODEL).reason == "non_finite_image"
    assert "float32" in decode_error(MODEL).detail


def test_outcomes_of_the_engine_become_reasons():
    assert denoise_error(result(is_finite=True), kind="base", dtype=torch.float16) is None
    overflow = denoise_error(result(is_finite=False), kind="refiner", dtype=torch.float16)
    assert overflow.reason == "non_finite_image"
    assert "refiner produced NaN or infinity in float16" in overflow.detail
    memory = denoise_error(
        OutOfMemoryRow(key="0", detail="64x64 px"), kind="base", dtype=torch.float32
    )
    assert (memory.reason, memory.detail) == ("out_of_memory", "64x64 px")
