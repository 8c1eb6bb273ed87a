"""Pictures of ``sdxl prepare`` on one core, beside a plain Pillow loop and img2dataset's way."""

import argparse
import importlib.metadata
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

from benchmarks.harness import Target, Took, interleaved, progress, spread, write_results
from sdxl_core.contract.samples import RawSample
from sdxl_core.data.buckets import nearest_bucket
from sdxl_core.data.decoding import decode_resized
from sdxl_core.data.geometry import covering_size
from sdxl_core.data.headers import read_header
from sdxl_core.data.sample_maker import PictureOptions, make_samples
from sdxl_core.storage.jpeg_decoding import decode_jpeg

MEGAPIXELS = (0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 8.0, 12.0)
ASPECTS = (3 / 2, 4 / 3, 3 / 4, 16 / 9, 1.0)  # width / height
OURS, PILLOW, CV2, DECODE = "sdxl prepare", "Pillow", "img2dataset's way", "scaled decode alone"
OVER_PILLOW, OVER_CV2 = 2.0, 1.2

Side = Callable[[bytes], object]

_WHAT = """
JPEG files of {num_files} made photographs (noise with the spectrum of photographs and a
sensor's grain, quality 90, 4:2:0), {low} to {high} megapixels, each made into one of the paper's
buckets on one thread. Every side covers the same bucket with an antialiased resize, crops the
middle and encodes a JPEG of quality 95.

- *sdxl prepare*: `make_samples` as the job calls it: header, filters, SHA-256, decoding (damage
  is an error), bicubic resize, perceptual hash, crop, JPEG 4:4:4.
- *Pillow*: open, EXIF rotation, convert to RGB, bicubic resize (the same filter), crop, JPEG 4:4:4.
- *img2dataset's way*: what its resizer does, written anew here with the same OpenCV calls:
  `imdecode`, INTER_AREA to make smaller and INTER_LANCZOS4 (not antialiased) to make larger, crop,
  `imencode` (4:2:0, so it has less to encode). {cv2}
- *scaled decode alone*: libjpeg-turbo at the scale that *sdxl prepare* uses, and nothing else.

Seconds are of CPU: on a quiet machine they are wall seconds. Sides take turns, size by size.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures; ``--rounds 1 --per-size 1`` tries the script."""
    parser = argparse.ArgumentParser(prog="benchmarks prepare_pictures", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-size", type=int, default=5)
    parser.add_argument("--megapixels", type=float, nargs="+", default=list(MEGAPIXELS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    files = make_files(options.megapixels, options.per_size)
    sides: dict[str, Side] = {OURS: prepare, PILLOW: pillow_loop, DECODE: scaled_decode}
    resize_with_cv2 = cv2_side()
    if resize_with_cv2 is not None:
        sides[CV2] = resize_with_cv2
    for side in sides.values():
        side(files[options.megapixels[0]][0])  # libraries set themselves up at the first call
    took = {
        megapixels: interleaved(
            {name: [_over(side, some)] * options.rounds for name, side in sides.items()}
        )
        for megapixels, some in files.items()
    }
    _report(files, took, is_trial=options.rounds < 3 or options.per_size < 3)


def make_files(megapixels: Sequence[float], per_size: int) -> dict[float, list[bytes]]:
    """JPEG files of made photographs by size."""
    files: dict[float, list[bytes]] = {}
    for size in megapixels:
        files[size] = []
        for index in range(per_size):
            aspect = ASPECTS[index % len(ASPECTS)]
            height = round(math.sqrt(size * 1e6 / aspect))
            pixels = photograph(height, round(height * aspect), seed=index)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            files[size].append(buffer.getvalue())
        num_bytes = sum(map(len, files[size])) / per_size
        progress(f"{size} MP: {num_bytes / size / 1e6:.2f} bytes for each pixel")
    return files


def photograph(height: int, width: int, *, seed: int) -> np.ndarray:
    """Noise that falls with frequency as photographs do, with a sensor's grain: (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    cells = 4
    while cells < max(height, width) / 2:
        for channel in range(3):
            small = rng.normal(size=(cells, cells)).astype(np.float32) / cells**0.7
            grown = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(grown)
        cells *= 2
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) / 2  # colours of neighbours are alike
    pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 128
    pixels += rng.normal(size=(height, width, 1), scale=2.5).astype(np.float32)
    return pixels.clip(0, 255).astype(np.uint8)


def prepare(data: bytes) -> object:
    """Ours, as the job calls it."""
    raw = RawSample(key="a", row_index=0, source="a", image=data, captions=("a photograph",))
    made = make_samples(raw, PictureOptions(crop="center"))
    assert isinstance(made, list), made
    return made


def pillow_loop(data: bytes) -> bytes:
    """What one writes first."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    size = (image.height, image.width)
    bucket = nearest_bucket(*size)
    height, width = covering_size(size, bucket)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - bucket[0]) // 2, (width - bucket[1]) // 2
    buffer = io.BytesIO()
    image = image.crop((left, top, left + bucket[1], top + bucket[0]))
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def scaled_decode(data: bytes) -> object:
    """The part that nobody can make faster."""
    size = read_header(data).size
    return decode_jpeg(data, "RGB", size, covering_size(size, nearest_bucket(*size)))


def cv2_side() -> Side | None:
    """img2dataset's calls of OpenCV, on the same sizes; None where OpenCV is not installed."""
    try:
        import cv2
    except ImportError:
        progress("no OpenCV here (opencv-python-headless): img2dataset's way is left out")
        return None
    cv2.setNumThreads(1)
    quality = [int(cv2.IMWRITE_JPEG_QUALITY), 95]

    def resize(data: bytes) -> bytes:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        bucket = nearest_bucket(*pixels.shape[:2])
        height, width = covering_size(pixels.shape[:2], bucket)
        is_smaller = height < pixels.shape[0]
        filter_name = cv2.INTER_AREA if is_smaller else cv2.INTER_LANCZOS4
        pixels = cv2.resize(pixels, (width, height), interpolation=filter_name)
        top, left = (height - bucket[0]) // 2, (width - bucket[1]) // 2
        pixels = pixels[top : top + bucket[0], left : left + bucket[1]]
        return bytes(cv2.imencode(".jpg", pixels, quality)[1])

    return resize


def closeness_db(data: bytes) -> float:
    """PSNR between our resized picture and Pillow's bicubic of the whole picture, decibels."""
    header = read_header(data)
    size = covering_size(header.size, nearest_bucket(*header.size))
    ours = decode_resized(data, header, size).rgb_HWC.astype(np.float64)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    theirs = np.asarray(whole.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return float(10 * np.log10(255**2 / np.mean((ours - theirs) ** 2)))


def _over(side: Side, files: Sequence[bytes]) -> Callable[[], None]:
    def work() -> None:
        for data in files:
            side(data)

    return work


def _report(
    files: Mapping[float, Sequence[bytes]],
    took: Mapping[float, Mapping[str, Sequence[Took]]],
    *,
    is_trial: bool,
) -> None:
    names = list(next(iter(took.values())))
    rounds = range(len(next(iter(took.values()))[OURS]))
    # Of a round over all files; equally many of every size, so the large ones weigh most.
    seconds = {
        name: [sum(sides[name][index].cpu_s for sides in took.values()) for index in rounds]
        for name in names
    }
    num_files = sum(map(len, files.values()))
    by_size = _by_size(files, took)
    ratios = {
        name: [other / ours for other, ours in zip(seconds[name], seconds[OURS], strict=True)]
        for name in names
        if name != OURS
    }
    values = {
        "num_files": num_files,
        "images_per_cpu_second": {
            name: spread([num_files / second for second in seconds[name]]) for name in names
        },
        "ratios": {name: spread(ratio) for name, ratio in ratios.items()},
        "share_of_scaled_decode": round(statistics.median(ratios[DECODE]), 4),
        "by_size": by_size,
        "pillow": PIL.__version__,
        "simplejpeg": importlib.metadata.version("simplejpeg"),
        "opencv": _opencv(),
    }
    write_results(
        "prepare_pictures",
        what=_WHAT.format(
            num_files=num_files,
            low=min(files),
            high=max(files),
            cv2=f"OpenCV {_opencv()}." if CV2 in ratios else "Not measured: OpenCV is not here.",
        ),
        values=values,
        tables={
            "all files": [
                {"side": name, **values["images_per_cpu_second"][name]}  # type: ignore[index]
                for name in names
            ],
            "by size": by_size,
        },
        targets=_targets(ratios, by_size),
        is_trial=is_trial,
    )


def _by_size(
    files: Mapping[float, Sequence[bytes]], took: Mapping[float, Mapping[str, Sequence[Took]]]
) -> list[dict[str, Any]]:
    rows = []
    for size, sides in took.items():
        medians = {name: statistics.median(t.cpu_s for t in some) for name, some in sides.items()}
        row: dict[str, Any] = {"megapixels": size}
        row |= {f"{name}, images/s": len(files[size]) / medians[name] for name in sides}
        row |= {f"over {name}": medians[name] / medians[OURS] for name in sides if name != OURS}
        row["closeness to Pillow, dB"] = min(map(closeness_db, files[size]))
        rows.append(row)
    return rows


def _targets(
    ratios: Mapping[str, Sequence[float]], by_size: Sequence[Mapping[str, Any]]
) -> list[Target]:
    wanted = {PILLOW: OVER_PILLOW} | ({CV2: OVER_CV2} if CV2 in ratios else {})
    targets = [
        Target(
            name=f"images/s over {name}, all files",
            found=statistics.median(ratios[name]),
            wanted=least,
        )
        for name, least in wanted.items()
    ]
    targets += [
        Target(
            name=f"images/s over {name}, at the worst size",
            found=min(row[f"over {name}"] for row in by_size),
            wanted=least,
        )
        for name, least in wanted.items()
    ]
    return targets


def _opencv() -> str:
    try:
        return importlib.metadata.version("opencv-python-headless")
    except importlib.metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
