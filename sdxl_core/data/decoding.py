"""From an image file to upright sRGB pixels of a wanted size.

A JPEG is decoded at a half, a quarter or an eighth where that is still as large as wanted: the
decoder then leaves out frequencies that the resize would take away anyway, and most of the work.
The rest is an antialiased bicubic resize (torch's, which does 8-bit pixels with vector
instructions; its kernel is Pillow's). A size that does not divide by the scale is accounted for to
the fraction of a pixel, so nothing is shifted or stretched.

Shapes: H, W height and width in pixels, C channels.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.data.colours import plain_image, to_srgb
from sdxl_core.data.geometry import Geometry
from sdxl_core.data.picture_files import DAMAGES, PictureError, PictureHeader, open_picture
from sdxl_core.storage.jpeg_decoding import decode_jpeg

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """An upright sRGB picture.

    Args:
        rgb_HWC: uint8, shape (H, W, 3).
        notes: what was done on the way, in order.
    """

    rgb_HWC: Pixels
    notes: tuple[str, ...]


def decode_resized(data: bytes, header: PictureHeader, resized_size: tuple[int, int]) -> Picture:
    """Decodes a file, makes it ``resized_size`` (height, width) and turns it upright.

    Args:
        data: the file.
        header: of ``read_header``. Hold its size against a limit first: files other than JPEG are
            decoded in full.
        resized_size: of the upright picture.

    Raises:
        PictureError: ``truncated_image``, ``corrupt_image`` or ``unsupported_format``.
    """
    orientation = header.exif_orientation
    stored_size = resized_size if orientation < 5 else (resized_size[1], resized_size[0])
    try:
        stored = _decode(data, header, stored_size)
    except DAMAGES as error:
        raise _damage(header, error) from error
    notes, extent = stored.notes, stored.extent
    if header.format == "tiff" and orientation != 1:  # Pillow has turned it upright
        notes, orientation = (*notes, "exif_rotated"), 1
        extent, stored_size = None, resized_size
    resized_HWC = resize(stored.pixels_HWC, stored_size, extent=extent)
    rgb_HWC, colour_notes = to_srgb(resized_HWC, stored.icc_profile)
    if orientation != 1:
        notes = ("exif_rotated", *notes)
    if header.is_animated:
        notes = (*notes, "first_frame")
    return Picture(rgb_HWC=turn_upright(rgb_HWC, orientation), notes=(*notes, *colour_notes))


def cut_sample(rgb_HWC: Pixels, geometry: Geometry) -> Pixels:
    """The sample in a resized picture: mirrored, if at all, then cropped.

    Args:
        rgb_HWC: upright, of ``geometry.resized_size``.
        geometry: of the sample.

    Returns:
        Pixels of ``geometry.target_size``, contiguous.
    """
    if geometry.flip:
        rgb_HWC = rgb_HWC[:, ::-1]
    (top, left), (height, width) = geometry.crop_top_left, geometry.target_size
    return np.ascontiguousarray(rgb_HWC[top : top + height, left : left + width])


def resize(
    pixels_HWC: Pixels, size: tuple[int, int], *, extent: tuple[float, float] | None = None
) -> Pixels:
    """Resizes with an antialiased bicubic filter.

    Args:
        pixels_HWC: uint8, any number of channels.
        size: (height, width) of the result.
        extent: (height, width) of the part that is resized, from the upper left corner, in pixels
            with fractions; at most one pixel less than all, which is the default.

    Returns:
        Pixels of ``size``.
    """
    height, width = pixels_HWC.shape[:2]
    extent = extent or (float(height), float(width))
    if extent == size == (height, width):
        return pixels_HWC
    # The filter's places follow the scale; the result can be a pixel longer than wanted.
    fits = extent == (height, width)
    scale = tuple(wanted / had * (1 + 1e-12) for wanted, had in zip(size, extent, strict=True))
    pixels_1HWC = torch.from_numpy(np.require(pixels_HWC, requirements=["C", "W"]))[None]
    resized_1CHW = torch.nn.functional.interpolate(
        pixels_1HWC.permute(0, 3, 1, 2),  # "channels last" to torch: it need not rearrange pixels
        size=size if fits else None,
        scale_factor=None if fits else scale,
        mode="bicubic",
        align_corners=False,
        antialias=True,
    )
    cut_1CHW = resized_1CHW[:, :, : size[0], : size[1]]
    return np.ascontiguousarray(cut_1CHW[0].permute(1, 2, 0).numpy())


def turn_upright(pixels_HWC: Pixels, exif_orientation: int) -> Pixels:
    """What a camera noted as ``exif_orientation`` (1 to 8) the right way up; a view."""
    if exif_orientation in (5, 6, 7, 8):
        pixels_HWC = pixels_HWC.swapaxes(0, 1)
    if exif_orientation in (3, 4, 7, 8):
        pixels_HWC = pixels_HWC[::-1]
    if exif_orientation in (2, 3, 6, 7):
        pixels_HWC = pixels_HWC[:, ::-1]
    return pixels_HWC


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stored:
    """The pixels of a file as they lie in it, grey, RGB or CMYK.

    ``extent`` is the (height, width) of them that is picture, with fractions; None is all.
    """

    pixels_HWC: Pixels
    extent: tuple[float, float] | None
    icc_profile: bytes | None
    notes: tuple[str, ...]


def _decode(data: bytes, header: PictureHeader, least_size: tuple[int, int]) -> _Stored:
    """Decodes, a JPEG at the smallest scale that is not below ``least_size``."""
    image = open_picture(data, header.format)
    icc_profile = image.info.get("icc_profile")
    if header.format == "jpeg":
        decoded = decode_jpeg(data, image.mode, header.stored_size, least_size)
        if decoded is not None:
            ink: tuple[str, ...] = ("cmyk",) if image.mode == "CMYK" else ()
            pixels_HWC, extent = decoded
            return _Stored(pixels_HWC=pixels_HWC, extent=extent, icc_profile=icc_profile, notes=ink)
    image.load()
    icc_profile = image.info.get("icc_profile")  # some formats tell it after the pixels
    image, notes = plain_image(image, bits=header.bits)
    pixels_HWC = np.array(image)
    if pixels_HWC.ndim == 2:
        pixels_HWC = pixels_HWC[:, :, None]
    return _Stored(pixels_HWC=pixels_HWC, extent=None, icc_profile=icc_profile, notes=notes)


def _damage(header: PictureHeader, error: Exception) -> PictureError:
    cut_words = ("truncated", "too short", "unexpected end", "not enough", "premature", "eof")
    text = str(error).lower()
    is_cut = isinstance(error, EOFError) or any(word in text for word in cut_words)
    is_cut &= not text.startswith("corrupt jpeg data")  # "premature end of data segment": skipped
    height, width = header.stored_size
    return PictureError(
        RejectReason.TRUNCATED_IMAGE if is_cut else RejectReason.CORRUPT_IMAGE,
        f"a {header.format} of {height} x {width} px: {error or type(error).__name__}",
    )
