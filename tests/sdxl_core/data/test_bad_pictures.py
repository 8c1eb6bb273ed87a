"""Every kind of bad or odd picture becomes a sample with a note, or a rejection with its reason."""

import dataclasses
import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdxl_core.contract.samples import Rejection, RejectReason, Sample
from sdxl_core.data.filters import SampleFilters
from sdxl_core.data.headers import read_header
from sdxl_core.data.picture_files import PictureError
from sdxl_core.data.sample_maker import PictureOptions, make_samples
from sdxl_core.storage.image_files import decode_image
from tests.sdxl_core.data.pictures import exif_of, file_of, photo, raw_sample

SIDE = 64
OPTIONS = PictureOptions(stages=(((SIDE, SIDE),),), image_format="png", crop="center")
COLOUR = (200, 60, 20)


def made_of(image: bytes | None, **others: Any) -> Sample | Rejection:
    made = make_samples(raw_sample(image, **others), OPTIONS)
    if isinstance(made, Rejection):
        return made
    (sample,) = made
    return sample


def rejection_of(image: bytes | None, **others: Any) -> Rejection:
    made = made_of(image, **others)
    assert isinstance(made, Rejection), made
    assert made.detail
    return made


def sample_of(image: bytes) -> tuple[Sample, tuple[int, ...]]:
    """The sample and the colour of its middle."""
    made = made_of(image)
    assert isinstance(made, Sample), made
    return made, tuple(decode_image(made.image)[SIDE // 2, SIDE // 2].tolist())


def plain(mode: str = "RGB", colour: Any = COLOUR) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), colour)


def jpeg() -> bytes:
    return file_of(Image.fromarray(photo(200, 200)), "JPEG")


def png_header(height: int, width: int) -> bytes:
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\x10IDAT" + b"\0" * 20


def huge_webp() -> bytes:
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + b"\xfe\x3f\0" * 2
    return b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_picture_is_rejected_as_damaged_with_its_size(kind: str, share: float) -> None:
    whole = file_of(Image.fromarray(photo(200, 100)), kind)
    found = rejection_of(whole[: int(len(whole) * share)])
    assert found.reason in (RejectReason.TRUNCATED_IMAGE, RejectReason.CORRUPT_IMAGE)
    if kind in ("JPEG", "PNG"):
        assert found.reason == RejectReason.TRUNCATED_IMAGE
        assert (found.original_height, found.original_width) == (200, 100)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("num_bytes", [4, 12, 25, 31, 60])
def test_a_picture_cut_in_its_header_is_rejected(kind: str, num_bytes: int) -> None:
    start = file_of(Image.fromarray(photo(200, 100)), kind)[:num_bytes]
    assert rejection_of(start).reason in (
        RejectReason.TRUNCATED_IMAGE,
        RejectReason.CORRUPT_IMAGE,
        RejectReason.NOT_AN_IMAGE,
    )


def test_a_corrupt_png_is_rejected() -> None:
    data = bytearray(file_of(Image.fromarray(photo(200, 100)), "PNG"))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    assert rejection_of(bytes(data)).reason == RejectReason.CORRUPT_IMAGE


def test_a_jpeg_of_noise_after_its_first_marker_is_rejected() -> None:
    noise = np.random.default_rng(0).bytes(4000)
    assert rejection_of(b"\xff\xd8\xff\xe0" + noise).reason == RejectReason.CORRUPT_IMAGE


def test_random_damage_never_raises() -> None:
    rng = np.random.default_rng(1)
    small = dataclasses.replace(OPTIONS, filters=SampleFilters(max_pixels=1_000_000))
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = file_of(Image.fromarray(photo(80, 60)), kind)
        for _ in range(25):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 6):
                data[place] = rng.integers(256)
            made = make_samples(raw_sample(bytes(data)), small)
            assert isinstance(made, (list, Rejection))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (None, RejectReason.MISSING_IMAGE),
        (b"", RejectReason.EMPTY_IMAGE),
        (b"<!DOCTYPE html><html><body>404</body></html>", RejectReason.NOT_AN_IMAGE),
        (b"<html><svg></svg></html>", RejectReason.NOT_AN_IMAGE),
        (b'{"error": "not found"}', RejectReason.NOT_AN_IMAGE),
        (b"<?xml version='1.0'?>\n<svg width='9' height='9'/>", RejectReason.UNSUPPORTED_FORMAT),
        (b"\0\0\0\x20ftypavif" + bytes(40), RejectReason.UNSUPPORTED_FORMAT),
        (b"\xff\x0a" + bytes(40), RejectReason.UNSUPPORTED_FORMAT),
        (b"%PDF-1.7", RejectReason.UNSUPPORTED_FORMAT),
        (png_header(60_000, 60_000), RejectReason.TOO_MANY_PIXELS),
        (huge_webp(), RejectReason.TOO_MANY_PIXELS),
        (png_header(0, 10), RejectReason.CORRUPT_IMAGE),
    ],
    ids="none empty html html-svg json svg avif jxl pdf huge-png huge-webp no-rows".split(),
)
def test_what_is_no_usable_picture_is_rejected(image: bytes | None, reason: RejectReason) -> None:
    assert rejection_of(image).reason == reason


def test_a_png_header_of_sixty_thousand_squared_tells_its_size() -> None:
    found = rejection_of(png_header(60_000, 60_000))
    assert (found.original_height, found.original_width) == (60_000, 60_000)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 8), (3, 2)])
def test_a_picture_of_a_hopeless_shape_or_size_is_rejected(size: tuple[int, int]) -> None:
    image = file_of(Image.new("RGB", (size[1], size[0])), "PNG")
    found = rejection_of(image)
    assert found.reason in (RejectReason.ASPECT_OUT_OF_RANGE, RejectReason.UPSCALE_TOO_LARGE)
    assert (found.original_height, found.original_width) == size


def test_a_strip_is_never_blown_up_even_without_limits() -> None:
    no_limits = SampleFilters(max_aspect=float("inf"), max_upscale=float("inf"))
    options = PictureOptions(filters=no_limits)
    strip = file_of(Image.new("RGB", (4000, 1)), "PNG")
    made = make_samples(raw_sample(strip), options)
    assert isinstance(made, Rejection)
    assert made.reason == RejectReason.ASPECT_OUT_OF_RANGE


def test_the_bytes_decide_whatever_the_name_says() -> None:
    made = made_of(file_of(plain(), "PNG"), source="x.tar#a.jpg")
    assert isinstance(made, Sample)


def test_a_row_with_a_problem_keeps_it() -> None:
    problem = (RejectReason.UNSAFE_MEMBER, "../../x")
    found = rejection_of(None, problem=problem)
    assert (found.reason, found.detail) == problem


def test_first_frames_of_animations_are_taken_and_noted() -> None:
    others = [plain(colour=(0, 0, 255)), plain(colour=(0, 255, 0))]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        image = file_of(plain(), kind, save_all=True, append_images=others, **options)
        sample, colour = sample_of(image)
        assert "first_frame" in sample.notes
        assert colour == pytest.approx(COLOUR, abs=2)
        assert "first_frame" not in sample_of(file_of(plain(), kind, **options))[0].notes


def test_transparency_lies_on_white_and_is_noted_only_where_there_is_any() -> None:
    half = plain("RGBA", (*COLOUR, 51))
    expected = tuple(round(255 + (level - 255) * 0.2) for level in COLOUR)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        sample, colour = sample_of(file_of(half, kind, **options))
        assert sample.notes == ("alpha_over_white",)
        assert colour == pytest.approx(expected, abs=1)
    opaque, colour = sample_of(file_of(plain("RGBA", (*COLOUR, 255)), "PNG"))
    assert opaque.notes == ()
    assert colour == COLOUR


def test_palettes_with_and_without_transparency_are_read() -> None:
    palette = plain().quantize(4)
    sample, colour = sample_of(file_of(palette, "PNG"))
    assert sample.notes == ("palette",)
    assert colour == pytest.approx(COLOUR, abs=4)
    sample, colour = sample_of(file_of(palette, "PNG", transparency=palette.getpixel((0, 0))))
    assert sample.notes == ("palette", "alpha_over_white")
    assert colour == (255, 255, 255)


def test_sixteen_bits_and_grey_and_black_and_white_are_read() -> None:
    grey = Image.fromarray(np.full((SIDE, SIDE), 40_000, np.uint16))
    for kind in ("PNG", "TIFF"):
        sample, colour = sample_of(file_of(grey, kind))
        assert sample.notes == ("sixteen_bit",)
        assert colour == pytest.approx((156,) * 3, abs=1)
    assert sample_of(file_of(plain("L", 99), "JPEG"))[1] == pytest.approx((99,) * 3, abs=1)
    assert sample_of(file_of(plain("1", 1), "PNG"))[1] == (255,) * 3
    assert sample_of(file_of(plain("LA", (99, 255)), "PNG"))[1] == (99,) * 3


def test_pixels_that_are_no_colours_are_rejected() -> None:
    depths = file_of(Image.fromarray(np.full((SIDE, SIDE), 0.5, np.float32)), "TIFF")
    assert rejection_of(depths).reason == RejectReason.UNSUPPORTED_FORMAT


def test_cmyk_is_read_and_noted() -> None:
    sample, colour = sample_of(file_of(plain().convert("CMYK"), "JPEG"))
    assert sample.notes == ("cmyk",)
    assert colour == pytest.approx(COLOUR, abs=4)


def swapped_profile() -> bytes:
    """The sRGB profile with the primaries of red and green exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    num_tags = struct.unpack_from(">I", data, 128)[0]
    places = {}
    for index in range(num_tags):
        name, start, _ = struct.unpack_from(">4sII", data, 132 + 12 * index)
        places[name] = (132 + 12 * index, start)
    (red, red_start), (green, green_start) = places[b"rXYZ"], places[b"gXYZ"]
    struct.pack_into(">I", data, red + 4, green_start)
    struct.pack_into(">I", data, green + 4, red_start)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_profile_is_applied_and_noted(kind: str) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    image = file_of(plain(), kind, icc_profile=swapped_profile(), **options)
    sample, colour = sample_of(image)
    assert sample.notes == ("icc_converted",)
    assert colour == pytest.approx((COLOUR[1], COLOUR[0], COLOUR[2]), abs=4)


def test_a_profile_that_is_srgb_or_damaged_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    sample, colour = sample_of(file_of(plain(), "PNG", icc_profile=srgb))
    assert (sample.notes, colour) == ((), COLOUR)
    sample, colour = sample_of(file_of(plain(), "PNG", icc_profile=b"nonsense" * 40))
    assert (sample.notes, colour) == (("icc_unusable",), COLOUR)


def test_exif_that_means_nothing_leaves_the_picture_as_it_lies() -> None:
    picture = Image.fromarray(photo(80, 120))
    for exif in (exif_of(0), exif_of(9), b"Exif\0\0nonsense"):
        header = read_header(file_of(picture, "JPEG", exif=exif))
        assert (header.exif_orientation, header.size) == (1, (80, 120))


def test_headers_tell_the_upright_size_without_the_pixels() -> None:
    picture = Image.fromarray(photo(80, 120))
    for kind in ("JPEG", "PNG", "TIFF"):
        header = read_header(file_of(picture, kind, exif=exif_of(6)))
        assert header.size == (120, 80)
    with pytest.raises(PictureError, match="empty_image"):
        read_header(b"")


def test_picture_errors_survive_a_process_boundary() -> None:
    error = PictureError(RejectReason.CORRUPT_IMAGE, "why")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, copy.detail) == (error.reason, error.detail)
