"""Image files: RGB arrays to PNG, WebP or JPEG and back, with the row's parameters inside.

The parameters are one JSON object: in PNG the text chunk ``sdxl_parameters``, in WebP and JPEG the
EXIF field UserComment. JPEG has room for 64 KB of EXIF, so in all three formats a longer object is
cut to ``MAX_PARAMETERS_BYTES``: its longest texts are shortened and end in a marker that tells the
full length, and the key ``_shortened`` lists them. The output table always has them in full.

Equal input gives equal bytes: nothing here depends on time, machine or earlier calls.

Shapes: H, W height and width in pixels, C=3 channels (red, green, blue).
"""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from sdxl_core.contract.errors import RowError
from sdxl_core.contract.reasons import Reason
from sdxl_core.storage.jpeg_decoding import decode_jpeg

ImageFormat = Literal["png", "webp", "jpeg"]

SUFFIXES: dict[ImageFormat, str] = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
PARAMETERS_KEY = "sdxl_parameters"
MAX_PARAMETERS_BYTES = 60_000
MAX_PIXELS = 64 << 20

# Speed over size, as a GPU waits behind these: level 1 and method 0 take a quarter and a tenth of
# the default's time for 6 % more bytes (PNG) and fewer bytes than any PNG (WebP).
_PNG_LEVEL = 1
_WEBP_METHOD = 0
_JPEG_QUALITY = 95

_ASCII_COMMENT = b"ASCII\0\0\0"  # EXIF's name for the encoding of a UserComment
# What Pillow raises over damaged files, or over too many pixels before we can count them.
_DAMAGES = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_READ_FORMATS = ("PNG", "JPEG", "WEBP")


def encode_image(
    rgb_HWC: npt.NDArray[np.uint8],
    *,
    image_format: ImageFormat,
    parameters: Mapping[str, Any] | None,
) -> bytes:
    """One image file.

    Args:
        rgb_HWC: uint8, shape ``(H, W, 3)``, H and W >= 1 (WebP: at most 16,383).
        image_format: ``png`` and ``webp`` keep every pixel as it is; ``jpeg`` is quality 95 without
            chroma subsampling.
        parameters: What made the image; values that JSON does not know are written as their text.
            None leaves them out.

    Raises:
        RowError: ``write_failed``, if the format cannot hold such an image.
    """
    text = None if parameters is None else parameters_json(parameters)
    buffer = io.BytesIO()
    try:
        if rgb_HWC.dtype != np.uint8 or rgb_HWC.ndim != 3 or rgb_HWC.shape[2] != 3:
            raise ValueError("expected uint8 of shape (H, W, 3)")
        image = Image.fromarray(np.ascontiguousarray(rgb_HWC))
        if image_format == "png":
            info = PngImagePlugin.PngInfo()
            if text is not None:
                info.add_text(PARAMETERS_KEY, text)
            image.save(buffer, "PNG", compress_level=_PNG_LEVEL, pnginfo=info)
        elif image_format == "webp":
            image.save(buffer, "WEBP", lossless=True, method=_WEBP_METHOD, exif=_exif(text))
        else:
            image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0, exif=_exif(text))
    except (OSError, ValueError, TypeError) as error:
        shape = "x".join(map(str, rgb_HWC.shape))
        raise RowError(
            Reason.WRITE_FAILED, f"a {shape} {rgb_HWC.dtype} array as {image_format}: {error}"
        ) from error
    return buffer.getvalue()


def read_parameters(data: bytes) -> dict[str, Any]:
    """The parameters inside an image file that ``encode_image`` made.

    Raises:
        RowError: ``unreadable_row``, if it is no such image or has no parameters.
    """
    image = _open(data)
    try:
        parameters = json.loads(_embedded_text(image))
    except _DAMAGES as error:
        raise RowError(
            Reason.UNREADABLE_ROW, f"no parameters of ours in the {image.format}: {error}"
        ) from error
    if not isinstance(parameters, dict):
        raise RowError(Reason.UNREADABLE_ROW, f"no parameters of ours in the {image.format}")
    return parameters


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """The pixels of a PNG, JPEG or WebP file, upright, as RGB.

    Args:
        data: The file.
        max_pixels: Height times width that is refused beyond; looked at before anything is decoded.

    Returns:
        rgb_HWC: uint8, shape ``(H, W, 3)``. Transparent parts come out on white, grey and palette
        images as RGB; an orientation noted in the file (EXIF) is applied.

    Raises:
        RowError: ``unreadable_row``, for other formats, damaged or cut files, and too many pixels.
    """
    image = _open(data)
    num_pixels = image.width * image.height
    if num_pixels > max_pixels:
        raise RowError(
            Reason.UNREADABLE_ROW,
            f"an image of {image.height} x {image.width} = {num_pixels} pixels; at most "
            f"{max_pixels} are decoded",
        )
    try:
        if image.format == "JPEG" and image.mode == "RGB" and "exif" not in image.info:
            size = (image.height, image.width)
            decoded = decode_jpeg(data, "RGB", size, size)
            if decoded is not None:
                return decoded[0]
        image.load()
        if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion clips them
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            with_alpha = upright.convert("RGBA")
            white = Image.new("RGBA", with_alpha.size, "white")
            upright = Image.alpha_composite(white, with_alpha)
        return np.asarray(upright.convert("RGB"))
    except _DAMAGES as error:
        raise RowError(Reason.UNREADABLE_ROW, f"a damaged {image.format}: {error}") from error


def parameters_json(parameters: Mapping[str, Any]) -> str:
    """``parameters`` as JSON in plain ASCII, at most ``MAX_PARAMETERS_BYTES`` long.

    Keys keep their order. The longest texts give way first, each to an equal share of the room.
    """
    plain = {str(name): value for name, value in parameters.items()}
    if len(_dump(plain)) <= MAX_PARAMETERS_BYTES:
        return _dump(plain)
    sizes = {name: len(_dump({name: value})) for name, value in plain.items()}
    long_names = [name for name, size in sizes.items() if size > 1000]
    room = MAX_PARAMETERS_BYTES - sum(size for size in sizes.values() if size <= 1000)
    for name in long_names:
        plain[name] = _shortened(plain[name], max(0, room // len(long_names) - 200))
    plain["_shortened"] = long_names
    kept: dict[str, Any] = {}
    num_bytes = 0
    for name, value in plain.items():  # a great many columns: the last ones go
        num_bytes += len(_dump({name: value}))
        if num_bytes <= MAX_PARAMETERS_BYTES:
            kept[name] = value
    return _dump(kept)


def _shortened(value: Any, num_bytes: int) -> str:
    """The start of a text that takes at most ``num_bytes`` as JSON, and how long it was."""
    text = value if isinstance(value, str) else _dump(value)
    kept = text[:num_bytes]
    while len(_dump(kept)) > num_bytes and kept:  # escapes make it longer than its characters
        kept = kept[: len(kept) * num_bytes // len(_dump(kept))]
    return f"{kept}… [shortened, {len(text)} characters in all]"


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, default=str)


def _exif(text: str | None) -> bytes:
    if text is None:
        return b""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII_COMMENT + text.encode()
    return exif.tobytes()


def _embedded_text(image: Image.Image) -> str:
    if isinstance(image, PngImagePlugin.PngImageFile):
        return str(image.text.get(PARAMETERS_KEY, ""))
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    return bytes(comment).removeprefix(_ASCII_COMMENT).decode("ascii")


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_READ_FORMATS)
    except _DAMAGES as error:
        found = f"{len(data)} bytes that begin with {data[:8]!r}"
        raise RowError(
            Reason.UNREADABLE_ROW, f"not a readable PNG, JPEG or WebP image: {found} ({error})"
        ) from error
