"""Small sources for tests: archives, pictures and the checks that hold for all of them."""

import io
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from sdxl_core.contract.samples import RawSample


def jpeg(seed: int = 0, *, size: tuple[int, int] = (8, 12)) -> bytes:
    """A JPEG of ``size`` (height, width) that differs from that of another seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_bytes(
    members: Iterable[tuple[str, bytes] | tarfile.TarInfo],
    *,
    tar_format: int = tarfile.PAX_FORMAT,
) -> bytes:
    """A tar file with these members, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def written(path: Path, data: bytes) -> str:
    """``data`` at ``path``; returns the path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def reasons(rows: Iterable[RawSample]) -> Counter[str]:
    """How many rows have which problem; "ok" is those that have none."""
    return Counter(str(row.problem[0]) if row.problem else "ok" for row in rows)
