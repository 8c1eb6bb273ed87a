"""Image files as the bytes say they are: the words that reading them is spoken of in.

What a file is, what it says of its size, how Pillow opens it without looking at its pixels, and the
error that becomes the rejection of its row.
"""

import dataclasses
import io
import struct
from collections.abc import Callable
from typing import Any, Final, Literal

from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from sdxl_core.contract.errors import SdxlError
from sdxl_core.contract.reject_reasons import RejectReason

PictureFormat = Literal["jpeg", "png", "webp", "gif", "bmp", "tiff"]

# What Pillow raises over damaged files.
DAMAGES: Final = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    EOFError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


class PictureError(SdxlError):
    """A picture cannot be used; ``reason`` and ``detail`` are those of its rejection."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.detail)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """What a file says of itself.

    Args:
        format: by its bytes.
        stored_size: (height, width) of the pixels as they lie in the file.
        exif_orientation: 1 to 8; 1 is upright.
        is_animated: are there several frames.
        bits: of one channel.
    """

    format: PictureFormat
    stored_size: tuple[int, int]
    exif_orientation: int = 1
    is_animated: bool = False
    bits: int = 8

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright picture."""
        height, width = self.stored_size
        return (width, height) if self.exif_orientation >= 5 else (height, width)


def open_picture(data: bytes, picture_format: PictureFormat) -> Image.Image:
    """Pillow's image of a file whose header has been read; its pixels are not decoded yet.

    ``Image.open`` would hold its own, global limit on pixels against it, by a warning.

    Raises:
        OSError, SyntaxError and others of ``DAMAGES``: as Pillow does.
    """
    return _OPENERS[picture_format](io.BytesIO(data))


_OPENERS: Final[dict[PictureFormat, Callable[[io.BytesIO], Image.Image]]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}


def orientation_of(exif: bytes | None) -> int:
    """The orientation that an EXIF block notes; 1 if it has none that means something."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        return valid_orientation(tags.get(ExifTags.Base.Orientation))
    except DAMAGES:  # the pixels may be fine: every viewer shows such a file as it lies
        return 1


def valid_orientation(orientation: Any) -> int:
    """``orientation`` if it is one of EXIF's eight, else 1."""
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
