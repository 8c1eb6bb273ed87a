"""Where a picture goes: its size after the resize, the crop, the mirror image.

All of it is decided before a pixel is touched, and the same numbers are the conditioning that is
stored and that the model is told. The order is fixed, and the words refer to it:

    upright picture (``original``) -> resize -> mirror left to right, if at all -> crop

So the crop is measured in the resized picture *after* it was mirrored: ``crop_left`` columns of
what one would see are missing at the left of the sample. (A crop that is measured before the mirror
and stored as it is tells the model the wrong side; diffusers' issue 6234.)

Sizes are (height, width), places are (top, left), pixels.
"""

import dataclasses
import hashlib
from typing import Literal

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import Bucket, cover_scale

CropMode = Literal["random", "center"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """What happens to one picture, and so what its conditioning is.

    Args:
        original_size: upright, before any resize.
        resized_size: covers the bucket; one side is equal to the bucket's.
        crop_top_left: of the sample in the resized, perhaps mirrored picture.
        target_size: the bucket.
        flip: is it mirrored left to right.
        upscale: resized divided by original size, of the side that is equal to the bucket's.
    """

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    target_size: Bucket
    flip: bool
    upscale: float


def plan_geometry(
    original_size: tuple[int, int],
    bucket: Bucket,
    *,
    crop: CropMode,
    key: str,
    seed: int,
    crop_index: int = 0,
    flip_probability: float = 0.0,
) -> Geometry:
    """The geometry of one sample: a pure function of its arguments.

    Args:
        original_size: of the upright picture, sides of at least 1.
        bucket: the size to fill.
        crop: ``random`` draws the place evenly from all that fit; ``center`` takes the middle,
            the upper left one of two.
        key: the sample's id.
        seed: of the run.
        crop_index: which of several crops of the same picture.
        flip_probability: 0 never mirrors, 1 always does.

    Raises:
        ConfigError: if a side is below 1 pixel.
    """
    if min(original_size) < 1 or min(bucket) < 1:
        raise ConfigError(
            f"geometry: found a picture of {original_size} and a bucket of {bucket} (height, "
            "width), expected sides of at least 1 px"
        )
    resized_size = covering_size(original_size, bucket)
    top, left, mirror = _draws(seed, key, crop_index)
    spare = (resized_size[0] - bucket[0], resized_size[1] - bucket[1])
    if crop == "random":
        place = (int(top * (spare[0] + 1)), int(left * (spare[1] + 1)))
    else:
        place = (spare[0] // 2, spare[1] // 2)
    return Geometry(
        original_size=original_size,
        resized_size=resized_size,
        crop_top_left=place,
        target_size=bucket,
        flip=mirror < flip_probability,
        upscale=cover_scale(*original_size, bucket),
    )


def covering_size(original_size: tuple[int, int], bucket: Bucket) -> tuple[int, int]:
    """The smallest size of about the same aspect that covers ``bucket``; one side is exact."""
    height, width = original_size
    if bucket[0] * width >= bucket[1] * height:  # in integers: no side is ever one pixel short
        return bucket[0], max(bucket[1], (2 * width * bucket[0] + height) // (2 * height))
    return max(bucket[0], (2 * height * bucket[1] + width) // (2 * width)), bucket[1]


def _draws(seed: int, key: str, crop_index: int) -> tuple[float, float, float]:
    """Three numbers in [0, 1), evenly spread, that depend on the arguments alone."""
    message = f"{seed}\0{key}\0{crop_index}".encode(errors="surrogatepass")
    digest = hashlib.blake2b(message, digest_size=24, person=b"sdxl-crop").digest()
    first, second, third = (
        (int.from_bytes(digest[start : start + 8], "big") >> 11) / 2**53 for start in (0, 8, 16)
    )
    return first, second, third
