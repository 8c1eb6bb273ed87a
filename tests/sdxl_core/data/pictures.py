"""Pictures for tests: pixels that tell where they are, and files of every kind made of them."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from sdxl_core.contract.samples import RawSample

Pixels = npt.NDArray[np.uint8]

RAMP_LEVELS = (16, 240)

# What a viewer does to stored pixels for each orientation; its inverse makes the stored pixels.
# Pillow's words, not ours: turning pictures upright is what is tested.
_STORED_FROM_UPRIGHT = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def ramp_image(height: int, width: int) -> Image.Image:
    """Red rises from left to right, green from top to bottom, evenly from ``RAMP_LEVELS[0]`` at the
    centres of the first pixels to ``RAMP_LEVELS[1]`` at those of the last.

    Levels are dithered, or rounding them, here and in a resize, would move what they say by more
    than a pixel where the ramp is flat.
    """
    pixels = np.full((height, width, 3), 128.0)
    pixels[..., 0] = np.linspace(*RAMP_LEVELS, width)[None, :]
    pixels[..., 1] = np.linspace(*RAMP_LEVELS, height)[:, None]
    pixels += np.random.default_rng(0).uniform(-0.5, 0.5, pixels.shape)
    return Image.fromarray(pixels.round().astype(np.uint8))


def photo(height: int, width: int, seed: int = 0) -> Pixels:
    """Noise with the spectrum of a photograph: strong at large scales, weak at small ones."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for cells in (3 * 2**octave for octave in range(9)):
        if cells >= max(height, width):
            break
        for channel in range(3):
            small = rng.normal(size=(cells, cells)).astype(np.float32) / cells**0.8
            grown = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(grown)
    pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 128
    return pixels.clip(0, 255).astype(np.uint8)


def stored(upright: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera that notes ``orientation`` would store it."""
    method = _STORED_FROM_UPRIGHT[orientation]
    return upright if method is None else upright.transpose(method)


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file of an image; JPEG of high quality unless ``options`` say otherwise."""
    if kind == "JPEG":
        options = {"quality": 98, "subsampling": 0} | options
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented_file(upright: Image.Image, kind: str, orientation: int) -> bytes:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    return file_of(stored(upright, orientation), kind, exif=exif_of(orientation), **options)


def raw_sample(image: bytes | None, *, key: str = "a", **others: Any) -> RawSample:
    fields: dict[str, Any] = {"row_index": 0, "source": "x.tar#a.jpg", "captions": ("a cat",)}
    return RawSample(key=key, image=image, **(fields | others))
