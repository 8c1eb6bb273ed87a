"""What an image file says of itself before anything is decoded: kind, size, orientation.

The bytes decide, never a name. Nothing is allocated that depends on the size that a file claims to
have, so a limit on pixels can be held against it first. PNG and WebP are walked here chunk by
chunk: Pillow would decode a PNG to reach an EXIF chunk at its end, and older ones set up the
canvas of a WebP as they open it.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final

from PIL import ExifTags

from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.data.picture_files import (
    DAMAGES,
    PictureError,
    PictureFormat,
    PictureHeader,
    open_picture,
    orientation_of,
    valid_orientation,
)


def read_header(data: bytes) -> PictureHeader:
    """The header of an image file: JPEG, PNG, WebP, GIF, BMP or TIFF.

    Raises:
        PictureError: ``empty_image``, ``not_an_image``, ``unsupported_format``, or, if the header
            itself is damaged or cut, ``corrupt_image`` or ``truncated_image``.
    """
    picture_format = _sniff(data)
    try:
        header = _READERS[picture_format](data)
    except DAMAGES as error:
        raise PictureError(
            RejectReason.CORRUPT_IMAGE, f"the header of a {picture_format}: {error}"
        ) from error
    if min(header.stored_size) < 1:
        raise PictureError(
            RejectReason.CORRUPT_IMAGE,
            f"a {picture_format} of {header.stored_size[0]} x {header.stored_size[1]} px",
        )
    return header


def _sniff(data: bytes) -> PictureFormat:
    if not data:
        raise PictureError(RejectReason.EMPTY_IMAGE, "0 bytes")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for start, picture_format in _STARTS.items():
        if data.startswith(start):
            return picture_format
    name = _unsupported_name(data)
    if name:
        raise PictureError(
            RejectReason.UNSUPPORTED_FORMAT,
            f"{name}; JPEG, PNG, WebP, GIF, BMP and TIFF are read",
        )
    raise PictureError(
        RejectReason.NOT_AN_IMAGE, f"{len(data)} bytes that begin with {data[:24]!r}"
    )


_STARTS: Final[dict[bytes, PictureFormat]] = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}


def _unsupported_name(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return f"an {data[8:12].decode('latin-1')} file (AVIF, HEIC or a film)"
    for start, name in (
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"8BPS", "Photoshop"),
        (b"%PDF", "PDF"),
        (b"\0\0\1\0", "an icon"),
    ):
        if data.startswith(start):
            return name
    start = data[:2000].lower()
    return "SVG" if b"<svg" in start and b"<html" not in start else ""


def _read_jpeg(data: bytes) -> PictureHeader:
    if len(data) < 20:
        raise PictureError(RejectReason.TRUNCATED_IMAGE, f"a jpeg of {len(data)} bytes")
    image = open_picture(data, "jpeg")
    return PictureHeader(
        format="jpeg",
        stored_size=(image.height, image.width),
        exif_orientation=orientation_of(image.info.get("exif")),
    )


def _read_png(data: bytes) -> PictureHeader:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise PictureError(RejectReason.TRUNCATED_IMAGE, "a png without its first chunk")
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    chunks = dict(_chunks(data, 8, ">I4s", 4))
    return PictureHeader(
        format="png",
        stored_size=(height, width),
        exif_orientation=orientation_of(chunks.get(b"eXIf")),
        is_animated=b"acTL" in chunks,
        bits=bits,
    )


def _read_webp(data: bytes) -> PictureHeader:
    if len(data) < 30:
        raise PictureError(RejectReason.TRUNCATED_IMAGE, f"a webp of {len(data)} bytes")
    kind = data[12:16]
    if kind == b"VP8X":
        height = 1 + int.from_bytes(data[27:30], "little")
        width = 1 + int.from_bytes(data[24:27], "little")
    elif kind == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        height, width = 1 + (packed >> 14 & 0x3FFF), 1 + (packed & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    num_bytes = 8 + int.from_bytes(data[4:8], "little")
    if num_bytes > len(data):
        raise PictureError(
            RejectReason.TRUNCATED_IMAGE,
            f"a webp of {height} x {width} px: {len(data)} of {num_bytes} bytes",
        )
    exif = None
    if kind == b"VP8X" and data[20] & 0x08:
        exif = dict(_chunks(data, 12, "<4sI", 0)).get(b"EXIF")
    return PictureHeader(
        format="webp",
        stored_size=(height, width),
        exif_orientation=orientation_of(exif),
        is_animated=kind == b"VP8X" and bool(data[20] & 0x02),
    )


def _read_gif(data: bytes) -> PictureHeader:
    image = open_picture(data, "gif")
    is_animated = bool(getattr(image, "is_animated", False))
    return PictureHeader(
        format="gif", stored_size=(image.height, image.width), is_animated=is_animated
    )


def _read_bmp(data: bytes) -> PictureHeader:
    image = open_picture(data, "bmp")
    return PictureHeader(format="bmp", stored_size=(image.height, image.width))


def _read_tiff(data: bytes) -> PictureHeader:
    image = open_picture(data, "tiff")
    tags = image.tag_v2  # type: ignore[attr-defined]  # the size itself: Pillow may swap its sides
    bits = tags.get(ExifTags.Base.BitsPerSample, 8)
    return PictureHeader(
        format="tiff",
        stored_size=(int(tags[ExifTags.Base.ImageLength]), int(tags[ExifTags.Base.ImageWidth])),
        exif_orientation=valid_orientation(tags.get(ExifTags.Base.Orientation)),
        is_animated=bool(getattr(image, "is_animated", False)),
        bits=max(bits) if isinstance(bits, tuple) else int(bits),
    )


_READERS: Final[dict[PictureFormat, Callable[[bytes], PictureHeader]]] = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "webp": _read_webp,
    "gif": _read_gif,
    "bmp": _read_bmp,
    "tiff": _read_tiff,
}


def _chunks(
    data: bytes, start: int, layout: str, num_after: int
) -> Iterator[tuple[bytes, bytes | None]]:
    """Names of a file's chunks, with the content of those that hold EXIF."""
    while start + 8 <= len(data):
        first, second = struct.unpack_from(layout, data, start)
        name, size = (second, first) if isinstance(first, int) else (first, second)
        has_exif = name in (b"eXIf", b"EXIF")
        yield name, data[start + 8 : start + 8 + size] if has_exif else None
        start += 8 + size + num_after
        if layout[0] == "<":  # RIFF pads to even places
            start += size & 1
