"""JPEG pixels are Pillow's to the last bit, and data that are damaged are told, not shown."""

import io

import numpy as np
import pytest
from PIL import Image

from sdxl_core.contract.samples import Rejection, RejectReason
from sdxl_core.data.sample_maker import PictureOptions, make_samples
from sdxl_core.storage.jpeg_decoding import decode_jpeg
from tests.sdxl_core.data.pictures import file_of, photo, raw_sample

OPTIONS = PictureOptions(stages=(((64, 64),),), image_format="png", crop="center")
SIZE = (203, 301)


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    return file_of(Image.fromarray(photo(*SIZE)).convert(mode), "JPEG", **options)


def rejection_of(image: bytes) -> Rejection:
    made = make_samples(raw_sample(image), OPTIONS)
    assert isinstance(made, Rejection), made
    assert (made.original_height, made.original_width) == SIZE
    return made


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_pixels_are_those_of_pillow_at_every_scale(mode: str, scale: int) -> None:
    data = jpeg(mode)
    least_size = (SIZE[0] // scale, SIZE[1] // scale)

    decoded = decode_jpeg(data, mode, SIZE, least_size)

    image = Image.open(io.BytesIO(data))
    drafted = image.draft(None, (least_size[1], least_size[0]))
    assert drafted is not None
    assert decoded is not None
    pixels_HWC, extent = decoded
    np.testing.assert_array_equal(pixels_HWC.squeeze(), np.asarray(image))
    assert extent == (SIZE[0] / scale, SIZE[1] / scale) == drafted[1][:1:-1]


@pytest.mark.parametrize("least_size", [(102, 150), (100, 151), (203, 301), (400, 10)])
def test_scale_never_goes_below_what_is_wanted(least_size: tuple[int, int]) -> None:
    decoded = decode_jpeg(jpeg(), "RGB", SIZE, least_size)

    assert decoded is not None
    assert decoded[0].shape == (*SIZE, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 2}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_data_that_are_damaged_in_the_middle_are_rejected(
    mode: str, options: dict[str, object]
) -> None:
    data = bytearray(jpeg(mode, **options))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    Image.open(io.BytesIO(data)).load()  # Pillow shows the rest as if nothing were wrong

    found = rejection_of(bytes(data))

    assert found.reason == RejectReason.CORRUPT_IMAGE
    assert "Corrupt JPEG data" in found.detail


@pytest.mark.parametrize("share", [0.2, 0.5, 0.98])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_data_that_end_too_early_are_rejected_as_cut(mode: str, share: float) -> None:
    data = jpeg(mode)

    found = rejection_of(data[: int(len(data) * share)])

    assert found.reason == RejectReason.TRUNCATED_IMAGE
    assert "Premature end" in found.detail


def test_a_file_whose_second_half_was_never_written_is_rejected_as_cut() -> None:
    data = jpeg()
    half = len(data) // 2
    assert rejection_of(data[:half] + bytes(half)).reason == RejectReason.TRUNCATED_IMAGE


def test_what_follows_the_picture_is_no_damage() -> None:
    made = make_samples(raw_sample(jpeg() + b"made by a camera" * 50), OPTIONS)
    assert isinstance(made, list)


def test_a_kind_that_the_binding_does_not_know_is_left_to_pillow() -> None:
    """Sampling factors 3 x 1 are lawful and rare."""
    data = jpeg("L")
    place = data.index(b"\xff\xc0") + 11  # sampling factors of the only component
    odd = data[:place] + b"\x31" + data[place + 1 :]

    assert decode_jpeg(odd, "YCbCr", SIZE, SIZE) is None
    made = make_samples(raw_sample(odd), OPTIONS)
    assert isinstance(made, list)
