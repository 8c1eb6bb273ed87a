"""JPEG data to pixels, by a binding of libjpeg-turbo that reports what the library noticed.

Pillow decodes with the same library, to the same pixels, but keeps its warnings to itself: a
picture whose data are damaged in the middle comes out of it as if nothing were wrong, with a part
shifted, grey or in false colours. Here that is an error. What a JPEG cannot tell, as it has no
checksum: a changed bit that happens to leave as many codes as before.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

_COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # Pillow's word, the binding's
_SCALES = (8, 4, 2)  # others take longer than they save
_DAMAGES = ("corrupt jpeg data", "premature end")  # beginnings of libjpeg's warnings


def decode_jpeg(
    data: bytes, mode: str, stored_size: tuple[int, int], least_size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], tuple[float, float]] | None:
    """Pixels at the smallest of the scales 1, 1/2, 1/4 and 1/8 that is not below ``least_size``.

    Args:
        data: the file; its header has been read.
        mode: ``L``, ``RGB`` or ``CMYK``: of the pixels wanted, as Pillow found it.
        stored_size: (height, width) of the picture in the file.
        least_size: (height, width).

    Returns:
        pixels_HWC: uint8, with 1, 3 or 4 channels; CMYK as Pillow has it: 0 is no ink.
        extent: (height, width) in pixels with fractions, of that part which is picture; the rest
            of the last row or column is not.
        None, if the binding does not know this kind of JPEG.

    Raises:
        ValueError: the data are damaged; the text is libjpeg's.
    """
    if mode not in _COLOURS:
        return None
    (height, width), (least_height, least_width) = stored_size, least_size
    fits = min(height // least_height, width // least_width)
    scale = next((scale for scale in _SCALES if scale <= fits), 1)
    wanted: dict[str, Any] = {}
    if scale > 1:
        wanted["min_height"], wanted["min_width"] = -(-height // scale), -(-width // scale)
        wanted["min_factor"] = scale
    try:
        pixels_HWC = simplejpeg.decode_jpeg(
            data, colorspace=_COLOURS[mode], fastdct=False, fastupsample=False, **wanted
        )
    except ValueError as error:
        if str(error).lower().startswith(_DAMAGES):
            raise
        return None
    if mode == "CMYK":
        pixels_HWC = 255 - pixels_HWC  # files hold what Adobe writes: the inverse
    return pixels_HWC, (height / scale, width / scale)
