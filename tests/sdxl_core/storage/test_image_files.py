"""Image files: pixels and parameters come back, and hostile files do no harm."""

import contextlib
import io
import json
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdxl_core.contract.errors import RowError
from sdxl_core.storage.image_files import (
    MAX_PARAMETERS_BYTES,
    ImageFormat,
    decode_image,
    encode_image,
    parameters_json,
    read_parameters,
)

FORMATS: tuple[ImageFormat, ...] = ("png", "webp", "jpeg")
PARAMETERS = {
    "prompt": 'größe 图 🐈 "quoted"\n<b>',
    "seed": 2**62 + 1,
    "guidance_scale": 7.5,
    "refiner": None,
    "nested": {"a": [1, 2]},
}


def picture(height: int = 48, width: int = 80) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    channels = [y * 255 // height, x * 255 // width, (x + y) % 256]
    return np.stack(channels, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("image_format", ["png", "webp"])
@given(data=st.data())
def test_lossless_formats_return_every_pixel(
    data: st.DataObject, image_format: ImageFormat
) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rgb_HWC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    file = encode_image(rgb_HWC, image_format=image_format, parameters={})

    assert np.array_equal(decode_image(file), rgb_HWC)


def test_jpeg_is_close_and_keeps_full_colour_resolution() -> None:
    rgb_HWC = np.zeros((32, 32, 3), np.uint8)
    rgb_HWC[:, ::2] = (255, 0, 0)  # columns of pure colour: 4:2:0 would blend them
    rgb_HWC[:, 1::2] = (0, 0, 255)

    file = encode_image(rgb_HWC, image_format="jpeg", parameters={})

    assert np.abs(decode_image(file).astype(int) - rgb_HWC).mean() < 12
    file = encode_image(picture(), image_format="jpeg", parameters={})
    assert np.abs(decode_image(file).astype(int) - picture()).mean() < 2


@pytest.mark.parametrize("image_format", FORMATS)
def test_parameters_come_back(image_format: ImageFormat) -> None:
    file = encode_image(picture(), image_format=image_format, parameters=PARAMETERS)

    assert read_parameters(file) == PARAMETERS
    assert list(read_parameters(file)) == list(PARAMETERS)


@pytest.mark.parametrize("image_format", FORMATS)
def test_equal_input_gives_equal_bytes(image_format: ImageFormat) -> None:
    files = {
        encode_image(picture(), image_format=image_format, parameters=PARAMETERS) for _ in range(3)
    }

    assert len(files) == 1
    assert files != {encode_image(picture(), image_format=image_format, parameters={})}


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("character", ["x", "图", '"', "\0"])
def test_megabyte_prompt_is_shortened_with_a_marker_and_the_rest_is_kept(
    image_format: ImageFormat, character: str
) -> None:
    parameters = PARAMETERS | {"prompt": character * 1_000_000, "note": "n" * 500_000, "last": 7}

    found = read_parameters(
        encode_image(picture(), image_format=image_format, parameters=parameters)
    )

    assert found["prompt"].endswith("… [shortened, 1000000 characters in all]")
    assert found["prompt"].startswith(character * 1000)
    assert found["note"].endswith("[shortened, 500000 characters in all]")
    assert found["_shortened"] == ["prompt", "note"]
    assert found["seed"] == PARAMETERS["seed"]
    assert found["last"] == 7


@given(
    st.lists(st.tuples(st.sampled_from('x图"\0'), st.integers(0, 90_000)), max_size=6),
    st.dictionaries(st.text(max_size=20), st.text() | st.integers(), max_size=5),
)
def test_parameters_always_fit_and_are_always_json(
    texts: list[tuple[str, int]], others: dict[str, object]
) -> None:
    parameters = {f"text {n}": c * length for n, (c, length) in enumerate(texts)} | others

    text = parameters_json(parameters)

    assert len(text) <= MAX_PARAMETERS_BYTES
    assert text.isascii()
    assert set(json.loads(text)) - {"_shortened"} <= set(parameters)


def test_a_thousand_columns_fit_too() -> None:
    found = json.loads(parameters_json({f"column-{n}": "x" * 900 for n in range(1000)}))

    assert found["column-0"] == "x" * 900


def test_values_that_json_does_not_know_are_written_as_text() -> None:
    file = encode_image(picture(), image_format="png", parameters={"x": np.float32(1.5)})

    assert read_parameters(file) == {"x": "1.5"}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["grey", "rgba", "float", "empty"],
)
def test_arrays_that_are_no_rgb_image_are_refused(array: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(RowError) as caught:
        encode_image(array, image_format="png", parameters={})

    assert caught.value.reason == "write_failed"


def test_image_wider_than_webp_allows_is_refused_as_a_row() -> None:
    with pytest.raises(RowError, match="write_failed"):
        encode_image(np.zeros((1, 16_384, 3), np.uint8), image_format="webp", parameters={})


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of few bytes whose header claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            len(data).to_bytes(4, "big") + name + data
            + zlib.crc32(name + data).to_bytes(4, "big")
        )  # fmt: skip

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(RowError) as caught:
        decode_image(png_of_size(*size))

    assert caught.value.reason == "unreadable_row"


def test_pixel_limit_is_exact() -> None:
    file = encode_image(picture(10, 10), image_format="png", parameters={})

    assert decode_image(file, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(RowError, match="10 x 10 = 100 pixels; at most 99"):
        decode_image(file, max_pixels=99)


@pytest.mark.parametrize("image_format", FORMATS)
@given(data=st.data())
def test_damaged_files_raise_row_errors_and_nothing_else(
    data: st.DataObject, image_format: ImageFormat
) -> None:
    file = bytearray(encode_image(picture(), image_format=image_format, parameters=PARAMETERS))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(file[: data.draw(st.integers(0, len(file)))])

    for use in (decode_image, read_parameters):
        with contextlib.suppress(RowError):
            use(cut)


def test_other_formats_are_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "GIF")

    for data in (buffer.getvalue(), b"", b"%!PS-Adobe-3.0 EPSF", b"<svg/>"):
        with pytest.raises(RowError, match="not a readable PNG, JPEG or WebP"):
            decode_image(data)


def test_image_without_parameters_is_told() -> None:
    for image_format in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, image_format)
        with pytest.raises(RowError, match="no parameters"):
            read_parameters(buffer.getvalue())


def test_all_kinds_of_source_images_become_upright_rgb() -> None:
    red_HWC = np.full((4, 6, 3), (255, 0, 0), np.uint8)
    red = Image.fromarray(red_HWC)
    see_through = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held sideways

    cases = [
        (red.convert("P"), {}, red_HWC),
        (red.convert("RGBA"), {}, red_HWC),
        (see_through, {}, np.full((4, 6, 3), 255, np.uint8)),
        (Image.new("L", (6, 4), 77), {}, np.full((4, 6, 3), 77, np.uint8)),
        (Image.new("1", (6, 4), 1), {}, np.full((4, 6, 3), 255, np.uint8)),
        (red, {"exif": turned}, np.full((6, 4, 3), (255, 0, 0), np.uint8)),
    ]
    for image, options, expected in cases:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **options)
        assert np.array_equal(decode_image(buffer.getvalue()), expected)
    buffer = io.BytesIO()
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(buffer, "JPEG")
    assert decode_image(buffer.getvalue()).shape == (4, 6, 3)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    grey = Image.fromarray(np.full((4, 6), 0x4D4D, np.uint16))
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")

    assert np.array_equal(decode_image(buffer.getvalue()), np.full((4, 6, 3), 0x4D, np.uint8))
