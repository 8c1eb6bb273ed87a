"""The stored conditioning is exactly what happened to the pixels.

A picture is drawn whose red rises evenly from left to right and whose green rises from top to
bottom. Whatever is done to it, a pixel's colour tells where in the upright original it came from.
From the sample's pixels alone the test finds out which original places its corners show, and from
the stored row alone it computes where they should be; the two must agree to a fraction of a pixel.
"""

import dataclasses
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sdxl_core.contract.samples import Sample
from sdxl_core.data.buckets import SDXL_BUCKETS, TINY_BUCKETS, Bucket
from sdxl_core.data.filters import SampleFilters
from sdxl_core.data.geometry import CropMode, covering_size
from sdxl_core.data.sample_maker import PictureOptions, make_samples
from sdxl_core.storage.image_files import decode_image
from tests.sdxl_core.data.pictures import (
    RAMP_LEVELS,
    file_of,
    oriented_file,
    photo,
    ramp_image,
    raw_sample,
)

FILTERS = SampleFilters(max_upscale=math.inf, max_aspect=math.inf)


def the_sample(image: bytes, bucket: Bucket, *, key: str = "a", **options: object) -> Sample:
    chosen = PictureOptions(
        stages=((bucket,),),
        filters=FILTERS,
        image_format="png",
        **options,  # type: ignore[arg-type]
    )
    made = make_samples(raw_sample(image, key=key), chosen)
    assert isinstance(made, list), made
    (sample,) = made
    return sample


def places_shown(sample: Sample) -> tuple[float, float, float, float]:
    """Found in the pixels: original row of the sample's middle row, original column of its middle
    column, and how many original rows and columns a step of one pixel goes (negative: mirrored).

    A straight line is fitted, away from the border where the resize has nothing to look at.
    """
    pixels = decode_image(sample.image).astype(float)

    def line(values: np.ndarray, length_original: int) -> tuple[float, float]:
        margin = max(2, math.ceil(3 * sample.upscale)) if sample.upscale > 1 else 3
        middle = (len(values) - 1) / 2
        steps = np.arange(len(values)) - middle
        inside = slice(margin, -margin) if len(values) > 4 * margin else slice(None)
        slope, value = np.polyfit(steps[inside], values[inside], 1)
        per_level = (length_original - 1) / (RAMP_LEVELS[1] - RAMP_LEVELS[0])
        return (value - RAMP_LEVELS[0]) * per_level, slope * per_level

    row, row_step = line(pixels[..., 1].mean(axis=1), sample.original_height)
    column, column_step = line(pixels[..., 0].mean(axis=0), sample.original_width)
    return row, column, row_step, column_step


def places_stored(sample: Sample) -> tuple[float, float, float, float]:
    """The same four numbers, from the columns of the row alone."""
    original = (sample.original_height, sample.original_width)
    resized = covering_size(original, sample.bucket)
    row_step, column_step = original[0] / resized[0], original[1] / resized[1]
    row = (sample.crop_top + sample.target_height / 2) * row_step - 0.5
    column = (sample.crop_left + sample.target_width / 2) * column_step - 0.5
    if sample.flip:  # the crop is measured in the mirrored picture
        column, column_step = original[1] - 1 - column, -column_step
    return row, column, row_step, column_step


def assert_conditioning_is_true(sample: Sample, upright_size: tuple[int, int]) -> None:
    assert (sample.original_height, sample.original_width) == upright_size
    assert decode_image(sample.image).shape[:2] == sample.bucket
    resized = covering_size(upright_size, sample.bucket)
    assert 0 <= sample.crop_top <= resized[0] - sample.target_height
    assert 0 <= sample.crop_left <= resized[1] - sample.target_width
    row, column, row_step, column_step = places_shown(sample)
    stored_row, stored_column, stored_row_step, stored_column_step = places_stored(sample)
    # Less than half a pixel of the sample: neither a crop that is one off can hide, nor a resize
    # that takes corners of pixels for their centres.
    for shown, said, step in (
        (row, stored_row, stored_row_step),
        (column, stored_column, stored_column_step),
    ):
        tolerance = 0.3 * abs(step)
        assert shown == pytest.approx(said, abs=tolerance)
    assert row_step == pytest.approx(stored_row_step, rel=0.02)
    assert column_step == pytest.approx(stored_column_step, rel=0.02)


sizes = st.tuples(st.integers(40, 420), st.integers(40, 420))


@settings(max_examples=60, deadline=None)
@given(
    upright_size=sizes,
    bucket=st.sampled_from(TINY_BUCKETS),
    orientation=st.integers(1, 8),
    crop=st.sampled_from(["random", "center"]),
    flip_probability=st.sampled_from([0.0, 0.5, 1.0]),
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]),
    key=st.text(max_size=5),
)
def test_conditioning_of_any_picture_is_what_happened_to_the_pixels(
    upright_size: tuple[int, int],
    bucket: Bucket,
    orientation: int,
    crop: CropMode,
    flip_probability: float,
    kind: str,
    key: str,
) -> None:
    image = oriented_file(ramp_image(*upright_size), kind, orientation)
    resized = covering_size(upright_size, bucket)
    if math.prod(resized) > 4 * math.prod(bucket):
        return  # refused: most of it would be cut away
    sample = the_sample(image, bucket, crop=crop, flip_probability=flip_probability, key=key)
    if flip_probability != 0.5:
        assert sample.flip == (flip_probability == 1)
    assert_conditioning_is_true(sample, upright_size)


@pytest.mark.parametrize("bucket", SDXL_BUCKETS, ids=lambda bucket: f"{bucket[0]}x{bucket[1]}")
def test_conditioning_in_every_bucket_of_the_paper_is_what_happened(bucket: Bucket) -> None:
    index = SDXL_BUCKETS.index(bucket)
    orientation = 1 + index % 8
    # Somewhat wider or taller than the bucket, so that there is something to crop away; larger or
    # smaller by turns, so that the decoder's own scaling takes part.
    factor = (0.6, 1.0, 1.3, 2.0)[index % 4]
    wider = (1.13, 1.0) if index % 2 else (1.0, 1.13)
    upright_size = (round(bucket[0] * factor * wider[0]), round(bucket[1] * factor * wider[1]))
    kind = ("JPEG", "PNG")[index // 2 % 2]
    image = oriented_file(ramp_image(*upright_size), kind, orientation)
    sample = the_sample(image, bucket, flip_probability=float(index // 4 % 2), key=f"k{index}")
    assert_conditioning_is_true(sample, upright_size)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_sample_of_every_orientation_is_what_pillow_makes_step_by_step(
    orientation: int, kind: str
) -> None:
    """The oracle: Pillow decodes in full, turns upright, resizes, mirrors and crops, in order."""
    upright = Image.fromarray(photo(211, 307))
    image = oriented_file(upright, kind, orientation)
    sample = the_sample(image, (120, 176), flip_probability=1.0)
    with Image.open(io.BytesIO(image)) as opened:
        whole = ImageOps.exif_transpose(opened).convert("RGB")
    assert whole.size == (307, 211)
    height, width = covering_size((211, 307), (120, 176))
    resized = ImageOps.mirror(whole.resize((width, height), Image.Resampling.BICUBIC))
    left, top = sample.crop_left, sample.crop_top
    expected = np.asarray(resized.crop((left, top, left + 176, top + 120))).astype(int)
    difference = np.abs(decode_image(sample.image).astype(int) - expected)
    assert difference.max() <= 3  # two passes that round in between, in another order
    assert ("exif_rotated" in sample.notes) == (orientation != 1)


@pytest.mark.parametrize("size", [(603, 801), (1001, 503)])
def test_jpeg_decoded_at_a_scale_is_the_picture_decoded_in_full(size: tuple[int, int]) -> None:
    picture = Image.fromarray(photo(*size))
    jpeg = file_of(picture, "JPEG", quality=95, subsampling=2)
    bucket = (128, 128)
    scaled = decode_image(the_sample(jpeg, bucket, crop="center").image).astype(float)
    with Image.open(io.BytesIO(jpeg)) as opened:
        png = file_of(opened.convert("RGB"), "PNG")
    full = decode_image(the_sample(png, bucket, crop="center").image).astype(float)
    psnr = 10 * math.log10(255**2 / np.mean((scaled - full) ** 2))
    assert psnr > 40


@pytest.mark.parametrize("flip_probability", [0.0, 1.0])
def test_conditioning_that_is_off_by_one_or_mirrored_is_caught(flip_probability: float) -> None:
    """The judge of the tests above sees the smallest lie, so they can fail."""
    tall = the_sample(
        file_of(ramp_image(300, 200), "JPEG"), (128, 128), flip_probability=flip_probability
    )
    wide = the_sample(
        file_of(ramp_image(200, 300), "JPEG"), (128, 128), flip_probability=flip_probability
    )
    assert_conditioning_is_true(tall, (300, 200))
    assert_conditioning_is_true(wide, (200, 300))
    lies = [
        (dataclasses.replace(tall, crop_top=tall.crop_top + 1), (300, 200)),
        (dataclasses.replace(wide, crop_left=wide.crop_left - 1), (200, 300)),
        (dataclasses.replace(wide, flip=not wide.flip), (200, 300)),
        (dataclasses.replace(tall, original_height=200, original_width=300), (200, 300)),
        (dataclasses.replace(wide, original_width=303), (200, 303)),
    ]
    for lie, size in lies:
        with pytest.raises(AssertionError):
            assert_conditioning_is_true(lie, size)


def test_crops_of_one_picture_differ_and_each_has_its_own_true_place() -> None:
    image = file_of(ramp_image(128, 300), "PNG")
    options = PictureOptions(
        stages=(((128, 128),),), filters=FILTERS, image_format="png", num_crops=4, seed=3
    )
    made = make_samples(raw_sample(image, key="row"), options)
    assert isinstance(made, list)
    assert [sample.id for sample in made] == ["row#0", "row#1", "row#2", "row#3"]
    assert len({sample.crop_left for sample in made}) > 1
    for sample in made:
        assert_conditioning_is_true(sample, (128, 300))


def test_same_row_and_options_give_the_same_sample_and_other_seeds_another() -> None:
    image = file_of(ramp_image(128, 400), "JPEG")
    samples = [
        the_sample(image, (128, 128), crop="random", flip_probability=0.5, seed=seed)
        for seed in (1, 1, 2, 3, 4, 5)
    ]
    assert samples[0] == samples[1]
    assert len({(sample.crop_left, sample.flip) for sample in samples}) > 2
