"""Training samples made of scenes: a picture at bucket size with its caption and its
micro-conditioning.

Most samples are clean and whole. Some are rendered at another size and resized (so that the
original size means something), some are cut out of a larger picture (so that the crop coordinates
do), some are spoilt by blur, noise or JPEG (so that the refiner's aesthetic score does).
"""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageFilter

from sdxl_core.data.scenes import RgbImage, caption, draw_scene, random_scene

# Aesthetic scores. A whole, sharp rendering is a good picture; spoilt ones go from 3 down to 0.5,
# the worse the lower. A score of 2.5, which guidance leads away from by default, is that of a
# slightly spoilt one: guidance multiplies the difference, and away from ruined pictures lie wrong
# colours.
CLEAN_AESTHETIC = (6.0, 7.0)
SPOILT_AESTHETIC = (3.0, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneSample:
    """One training sample.

    ``rgb_HWC`` is uint8 at target size. Sizes are (height, width) and crop is (top, left), in
    pixels; crop coordinates are measured in the resized picture, as in SDXL.
    """

    rgb_HWC: RgbImage
    caption: str
    original_size_px: tuple[int, int]
    crop_px: tuple[int, int]
    target_size_px: tuple[int, int]
    aesthetic: float


def spoil(rgb_HWC: RgbImage, rng: np.random.Generator, *, badly: float) -> RgbImage:
    """Returns the picture blurred, noisy or JPEG-compressed.

    Args:
        rgb_HWC: the picture.
        rng: draws the way.
        badly: 0 (hardly seen) to 1 (ruined).
    """
    way = int(rng.integers(3))
    if way == 0:
        radius_px = 0.5 + 2.5 * badly
        blurred = Image.fromarray(rgb_HWC).filter(ImageFilter.GaussianBlur(radius_px))
        return np.asarray(blurred, dtype=np.uint8)
    if way == 1:
        noise = rng.normal(0.0, 5 + 25 * badly, rgb_HWC.shape)
        return np.clip(rgb_HWC + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb_HWC).save(buffer, "JPEG", quality=round(30 - 26 * badly))
    return np.asarray(Image.open(buffer).convert("RGB"), dtype=np.uint8)


def render_sample(
    rng: np.random.Generator,
    *,
    height_px: int,
    width_px: int,
    resized_share: float = 0.12,
    cropped_share: float = 0.12,
    spoilt_share: float = 0.0,
) -> SceneSample:
    """Renders one sample for the bucket ``height_px`` x ``width_px``.

    Args:
        rng: the only source of randomness.
        height_px: bucket height in pixels.
        width_px: bucket width in pixels.
        resized_share: probability of rendering at another size (0.3 to 2 times) and resizing to the
            bucket.
        cropped_share: probability of cutting the bucket out of a picture up to 1.4 times as large.
        spoilt_share: probability of spoiling the finished picture; its aesthetic score says so.
    """
    target = (height_px, width_px)
    original, resized, crop = target, target, (0, 0)
    draw = float(rng.random())
    if draw < resized_share:
        scale = float(np.exp(rng.uniform(np.log(0.3), np.log(2.0))))
        original = (round(height_px * scale), round(width_px * scale))
    elif draw < resized_share + cropped_share:
        larger = float(rng.uniform(1.0, 1.4))
        original = resized = (round(height_px * larger), round(width_px * larger))
        crop = (
            int(rng.integers(resized[0] - height_px + 1)),
            int(rng.integers(resized[1] - width_px + 1)),
        )
    scene = random_scene(rng, height_px=height_px, width_px=width_px)
    picture = Image.fromarray(draw_scene(scene, *original))
    if resized != original:
        picture = picture.resize((resized[1], resized[0]), Image.Resampling.BICUBIC)
    top, left = crop
    rgb_HWC = np.asarray(
        picture.crop((left, top, left + width_px, top + height_px)), dtype=np.uint8
    )
    aesthetic = float(rng.uniform(*CLEAN_AESTHETIC))
    if float(rng.random()) < spoilt_share:
        badly = float(rng.random())
        rgb_HWC = spoil(rgb_HWC, rng, badly=badly)
        aesthetic = float(np.interp(badly, (0, 1), SPOILT_AESTHETIC))
    return SceneSample(
        rgb_HWC=rgb_HWC,
        caption=caption(scene),
        original_size_px=original,
        crop_px=crop,
        target_size_px=target,
        aesthetic=aesthetic,
    )
