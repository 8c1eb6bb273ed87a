"""From whatever colours a file has to plain 8-bit sRGB, and a note of what was done.

It goes in two steps, because a conversion by ICC profile costs much for each pixel and most
pictures are made smaller in between: ``plain_image`` before the resize (palettes, transparency over
white, 16 bits), ``to_srgb`` after it (profiles, CMYK, grey).
"""

import functools
import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.data.picture_files import PictureError

_MODES = {1: "L", 3: "RGB", 4: "CMYK"}


def plain_image(image: Image.Image, *, bits: int) -> tuple[Image.Image, tuple[str, ...]]:
    """A loaded image in mode L, RGB or CMYK, and notes.

    Args:
        image: of any mode that Pillow reads.
        bits: of one channel in the file; Pillow itself keeps the upper 8 of 16 bits of colour.

    Raises:
        PictureError: ``unsupported_format``, for pixels that are no colours (32-bit integers,
            floating point).
    """
    notes = []
    if bits > 8:
        notes.append("sixteen_bit")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I" and bits == 16:  # as some versions of Pillow read a PNG's
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise PictureError(
            RejectReason.UNSUPPORTED_FORMAT,
            f"pixels of mode {image.mode} (32 bits); 8 and 16 bits are read",
        )
    if image.mode in ("P", "PA"):
        notes.append("palette")
    if image.has_transparency_data:
        image, was_needed = _over_white(image)
        notes += ["alpha_over_white"] * was_needed
    if image.mode == "CMYK":
        notes.append("cmyk")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image, tuple(notes)


def to_srgb(
    pixels_HWC: npt.NDArray[np.uint8], icc_profile: bytes | None
) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Pixels as sRGB, and notes.

    Args:
        pixels_HWC: 1 (grey), 3 (RGB) or 4 (CMYK) channels.
        icc_profile: of the file. One that does not fit the channels, or is damaged, is left aside
            with the note ``icc_unusable``, as viewers do; one that is sRGB by another name changes
            nothing.

    Returns:
        rgb_HWC: uint8, 3 channels.
    """
    mode = _MODES[pixels_HWC.shape[2]]
    transform, note = _transform(icc_profile, mode) if icc_profile else (None, "")
    notes = (note,) if note else ()
    if mode == "RGB" and transform is None:
        return pixels_HWC, notes
    image = Image.fromarray(
        np.ascontiguousarray(pixels_HWC.squeeze(2) if mode == "L" else pixels_HWC), mode
    )
    if transform is None:
        return np.array(image.convert("RGB")), notes
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # only a conversion in place returns nothing
    return np.array(converted), notes


def _over_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """An RGB image on white, and whether any pixel was not opaque."""
    with_alpha = image.convert("RGBA")
    lowest, _ = with_alpha.getchannel("A").getextrema()
    if lowest == 255:
        return with_alpha.convert("RGB"), False
    white = Image.new("RGBA", with_alpha.size, "white")
    return Image.alpha_composite(white, with_alpha).convert("RGB"), True


@functools.lru_cache(maxsize=64)
def _transform(icc_profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """The way from a profile to sRGB, None if there is nothing to do, and a note."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None, "icc_unusable"
    if mode == "RGB" and _changes_nothing(transform):
        return None, ""
    return transform, "icc_converted"


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Are colours from all over the cube moved by two levels of 255 at most."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(9, 81, 3)
    moved = ImageCms.applyTransform(Image.fromarray(cube), transform)
    assert moved is not None
    return int(np.abs(np.asarray(moved).astype(int) - cube).max()) <= 2
