"""Aspect-ratio buckets: the shapes that pictures are trained in and best asked for in.

``SDXL_BUCKETS`` is the table of the SDXL paper (appendix I, arXiv:2307.01952) as it stands there;
it is not symmetric: 704 x 1344 has no mirror image. ``TINY_BUCKETS`` are the same shapes divided by
8, for the embedded model. A bucket is ``(height_px, width_px)``.
"""

import math
from collections.abc import Sequence

from sdxl_core.contract.errors import ConfigError

Bucket = tuple[int, int]

SDXL_BUCKETS: tuple[Bucket, ...] = (
    (512, 2048),
    (512, 1984),
    (512, 1920),
    (512, 1856),
    (576, 1792),
    (576, 1728),
    (576, 1664),
    (640, 1600),
    (640, 1536),
    (704, 1472),
    (704, 1408),
    (704, 1344),
    (768, 1344),
    (768, 1280),
    (832, 1216),
    (832, 1152),
    (896, 1152),
    (896, 1088),
    (960, 1088),
    (960, 1024),
    (1024, 1024),
    (1024, 960),
    (1088, 960),
    (1088, 896),
    (1152, 896),
    (1152, 832),
    (1216, 832),
    (1280, 768),
    (1344, 768),
    (1408, 704),
    (1472, 704),
    (1536, 640),
    (1600, 640),
    (1664, 576),
    (1728, 576),
    (1792, 576),
    (1856, 512),
    (1920, 512),
    (1984, 512),
    (2048, 512),
)

TINY_BUCKETS: tuple[Bucket, ...] = tuple(
    (height // 8, width // 8) for height, width in SDXL_BUCKETS
)


def nearest_bucket(
    height_px: int, width_px: int, buckets: Sequence[Bucket] = SDXL_BUCKETS
) -> Bucket:
    """Returns the bucket whose aspect ratio is nearest to a picture's, by the difference of
    logarithms.

    Args:
        height_px: height of the picture, at least 1.
        width_px: width of the picture, at least 1.
        buckets: what to choose from; of equally near ones the first wins.

    Raises:
        ConfigError: if a side is below 1 pixel or there are no buckets.
    """
    if height_px < 1 or width_px < 1 or not buckets:
        raise ConfigError(
            f"nearest bucket: found a picture of {height_px} x {width_px} px and "
            f"{len(buckets)} buckets, expected sides of at least 1 px and at least one bucket"
        )
    wanted = math.log(height_px / width_px)
    return min(buckets, key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - wanted))
