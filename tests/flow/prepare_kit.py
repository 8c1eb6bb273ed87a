"""What the whole-job tests of prepare share: one set of rows as sources of every kind, results."""

import io
import json
import struct
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.fsck import FsckConfig
from jobs.fsck import run as fsck
from jobs.prepare_config import PrepareConfig, PrepareHow
from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.storage.parts import read_part_records
from sdxl_core.storage.sample_parts import bucket_of_path, read_bucket_file, rejected_path
from sdxl_core.storage.staged_parts import read_parquet
from sdxl_core.storage.stores import Store, open_store
from tests.sdxl_core.data.pictures import exif_of, file_of, stored

SIZES = [(200, 260), (260, 200), (150, 150), (130, 380), (64, 64), (300, 170)]
"""Height and width of the good rows, over and over."""

Row = tuple[str, bytes | None, str | None, dict[str, Any]]
"""Key, image file, text of the caption file, the JSON beside it."""


def picture(height: int, width: int, *, seed: int) -> Image.Image:
    """Soft patches of colour, unlike those of any other seed."""
    rng = np.random.default_rng(seed)
    small_HWC = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(small_HWC).resize((width, height), Image.Resampling.BICUBIC)


def good_rows(num_rows: int, *, prefix: str = "good") -> list[Row]:
    """Rows that become samples: photographs with a caption, every third with two."""
    return [
        (
            f"{prefix}{n:03d}",
            file_of(picture(*SIZES[n % len(SIZES)], seed=n), "JPEG", quality=90),
            f"picture {n}" + ("\nanother caption" if n % 3 == 0 else ""),
            {"aesthetic": n % 10, "url": f"http://example.org/{n}"},
        )
        for n in range(num_rows)
    ]


def bad_rows() -> dict[str, tuple[RejectReason, Row]]:
    """Rows that cannot become samples under ``settings``, by key, each with the expected reason."""
    whole = file_of(picture(100, 120, seed=1000), "JPEG")
    page = b"<!DOCTYPE html><html><body>404</body></html>"
    rows: dict[str, tuple[RejectReason, bytes | None, str | None, int | None]] = {
        "bad-empty": (RejectReason.EMPTY_IMAGE, b"", "a", 5),
        "bad-html": (RejectReason.NOT_AN_IMAGE, page, "a", 5),
        "bad-cut": (RejectReason.TRUNCATED_IMAGE, whole[: len(whole) // 2], "a", 5),
        "bad-bomb": (RejectReason.TOO_MANY_PIXELS, png_header(60_000, 60_000), "a", 5),
        "bad-svg": (RejectReason.UNSUPPORTED_FORMAT, b'<svg xmlns="x"></svg>', "a", 5),
        "bad-long": (RejectReason.ASPECT_OUT_OF_RANGE, plain_file(20, 400), "a", 5),
        "bad-small": (RejectReason.TOO_SMALL, plain_file(12, 12), "a", 5),
        "bad-caption": (RejectReason.MISSING_CAPTION, plain_file(90, 91), " ", 5),
        "bad-low": (RejectReason.BELOW_MIN, plain_file(91, 90), "a", -3),
        "bad-noscore": (RejectReason.METADATA_MISSING, plain_file(92, 90), "a", None),
        "zz-copy": (RejectReason.DUPLICATE_EXACT, good_rows(1)[0][1], "a copy", 5),
    }
    return {
        key: (reason, (key, image, caption, {} if score is None else {"aesthetic": score}))
        for key, (reason, image, caption, score) in rows.items()
    }


def odd_rows() -> list[Row]:
    """Rows that are unusual and become samples all the same."""
    upright = picture(140, 100, seed=2000)
    alpha = upright.copy()
    alpha.putalpha(128)
    files = {
        "odd-exif": file_of(stored(upright, 6), "JPEG", exif=exif_of(6)),
        "odd-alpha": file_of(alpha, "PNG"),
        "odd-cmyk": file_of(upright.resize((99, 140)).convert("CMYK"), "JPEG"),
        "odd-gif": file_of(upright.resize((98, 140)).quantize(64), "GIF"),
    }
    return [(key, image, "odd", {"aesthetic": 5}) for key, image in files.items()]


def all_rows(num_good: int) -> list[Row]:
    return [*good_rows(num_good), *odd_rows(), *(row for _, row in bad_rows().values())]


def plain_file(height: int, width: int) -> bytes:
    """A small PNG; no two sizes are duplicates."""
    return file_of(picture(height, width, seed=height * 1000 + width), "PNG")


def png_header(height: int, width: int) -> bytes:
    """The start of a PNG that says to be of that size."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunk + bytes(100)


def write_folder(folder: Path, rows: Sequence[Row]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for key, image, caption, metadata in rows:
        for suffix, data in _files(image, caption, metadata).items():
            (folder / f"{key}.{suffix}").write_bytes(data)
    return str(folder)


def tar_of(rows: Sequence[Row]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for key, image, caption, metadata in rows:
            for suffix, data in _files(image, caption, metadata).items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tars(folder: Path, rows: Sequence[Row], *, num_tars: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_tars):
        (folder / f"{number:05d}.tar").write_bytes(tar_of(rows[number::num_tars]))
    return str(folder)


def nasty_tar() -> tuple[bytes, set[str], Counter[str]]:
    """A tar as one would not want it; ids of its samples; its rejected rows by reason, at least."""
    files = {
        f"nasty/{name}": plain_file(100 + n, 110)
        for n, name in enumerate(("apart", "other", "deep/er/c", "latin", "twice", "cut"))
    }
    score = json.dumps({"aesthetic": 5}).encode()
    apart = ("apart", "other", "deep/er/c", "latin")  # their members are not side by side
    members: list[tuple[str, bytes] | tarfile.TarInfo] = [
        *((f"nasty/{name}.png", files[f"nasty/{name}"]) for name in apart),
        *((f"nasty/{name}.json", score) for name in apart),
        *((f"nasty/{name}.txt", b"a caption") for name in apart[:3]),
        ("nasty/latin.txt", "für Élise".encode("latin-1")),
        ("nasty/twice.png", files["nasty/twice"]),
        ("nasty/twice.png", plain_file(90, 90)),
    ]
    members += [("nasty/twice.txt", b"a"), ("nasty/twice.json", score)]
    members.append(("../../x.png", files["nasty/apart"]))
    link = tarfile.TarInfo("nasty/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members.append(link)
    members += [("nasty/cut.txt", b"a"), ("nasty/cut.png", files["nasty/cut"])]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member[0])
            data = b"" if isinstance(member, tarfile.TarInfo) else member[1]
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        end = archive.offset
    kept = buffer.getvalue()[: end - len(files["nasty/cut"]) // 2]
    reasons = [RejectReason.UNSAFE_MEMBER] * 2 + [
        RejectReason.DUPLICATE_KEY,
        RejectReason.TRUNCATED_ARCHIVE,
    ]
    made = {"nasty/apart", "nasty/other", "nasty/deep/er/c", "nasty/latin", "nasty/twice"}
    return kept, made, Counter(map(str, reasons))


def parquet_of(rows: Sequence[Row]) -> bytes:
    table = pa.table(
        {
            "key": [key for key, *_ in rows],
            "image": pa.array([image for _, image, *_ in rows], pa.binary()),
            "captions": [(caption or "").split("\n") for _, _, caption, _ in rows],
            "aesthetic": pa.array([row[3].get("aesthetic") for row in rows], pa.float64()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=10)
    return buffer.getvalue()


def settings(
    source: str | Path, out: str | Path, how: Mapping[str, Any] | None = None, **more: Any
) -> PrepareConfig:
    """A config with tiny buckets, several slices and groups; ``how`` and ``more`` change it."""
    values: dict[str, Any] = {
        "preset": "tiny",
        "rows_per_slice": 12,
        "group_bytes": 100_000,
        "min_side_px": 16,
        "min": ("aesthetic=0",),
    } | more
    spread = {"retries": 2, "max_failed_share": 1.0, "batch_size": 4} | dict(how or {})
    return PrepareConfig(source=str(source), out=str(out), how=PrepareHow(**spread), **values)


def command(source: str | Path, out: str | Path, *flags: str) -> list[str]:
    """The command of ``settings``, for another process."""
    return [
        sys.executable, "-m", "jobs", "prepare", str(source), str(out), "--preset", "tiny",
        "--rows-per-slice", "12", "--group-bytes", "100000", "--min-side-px", "16",
        "--min", "aesthetic=0", "--how.retries", "2", "--how.max-failed-share", "1.0",
        "--how.batch-size", "4", *flags,
    ]  # fmt: skip


def read_samples(out: str | Path) -> list[dict[str, Any]]:
    """All samples in the order of parts and of their files."""
    store = open_store(out)
    rows: list[dict[str, Any]] = []
    for record in read_part_records(store):
        for file in record.files:
            if bucket_of_path(file.path):
                rows += read_bucket_file(store, file.path).to_pylist()
    return rows


def read_rejected(out: str | Path) -> list[dict[str, Any]]:
    store = open_store(out)
    tables = [read_parquet(store, rejected_path(r.part)) for r in read_part_records(store)]
    return [row for table in tables for row in table.to_pylist()]


def content(out: str | Path) -> dict[str, Any]:
    """What a run has made, but for where its rows were read and in which slices."""
    varying = {"source", "source_slice", "row_index", "metadata"}
    samples = {
        row["id"]: {name: value for name, value in row.items() if name not in varying}
        for row in read_samples(out)
    }
    return samples | {row["id"]: row["reason"] for row in read_rejected(out)}


def file_hashes(out: str | Path) -> dict[str, str]:
    """SHA-256 of each data file of an output."""
    records = read_part_records(open_store(out))
    return {file.path: file.sha256 for record in records for file in record.files}


def assert_sound(out: str | Path, num_rows: int) -> None:
    """In = samples + rejected, each source row once, nothing left over, fsck finds nothing."""
    samples, rejected = read_samples(out), read_rejected(out)
    kept = {(row["source_slice"], row["row_index"]) for row in samples}
    lost = [(row["source_slice"], row["row_index"]) for row in rejected]
    assert len(kept) + len(lost) == num_rows
    assert len(kept | set(lost)) == num_rows
    check = fsck(FsckConfig(out=str(out))).check
    assert check.complete
    assert not check.problems
    assert not check.orphans
    assert not any("_staging" in file.path for file in open_store(out).iter_files())


def reasons(out: str | Path) -> Counter[str]:
    return Counter(row["reason"] for row in read_rejected(out))


def upload(store: Store, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.upload(path, f"{prefix}/{path.relative_to(folder)}")


def _files(
    image: bytes | None, caption: str | None, metadata: Mapping[str, Any]
) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    if image is not None:
        files["jpg"] = image
    if caption is not None:
        files["txt"] = caption.encode()
    return files | {"json": json.dumps(metadata).encode()}
