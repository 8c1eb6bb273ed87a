"""Pictures in a folder, each with its caption beside it: ``a.jpg`` and ``a.txt`` or ``a.json``.

A row is a picture, or a caption file without one (rejected). Files of other kinds are no rows.
The names are written down when the run is planned: one that is gone later is a rejected row.
"""

import dataclasses
import functools
import json
import posixpath
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from sdxl_core.contract.samples import RawSample
from sdxl_core.storage.source_files import NUM_READ_THREADS, read_optional_file
from sdxl_core.storage.source_members import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    METADATA_SUFFIX,
    assemble,
)
from sdxl_core.storage.source_slices import SourceSlice
from sdxl_core.storage.stores import Store, StoredFile, open_store
from sdxl_core.storage.threads import map_in_order

_BESIDE: Final = (*CAPTION_SUFFIXES, METADATA_SUFFIX)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderRow:
    """A picture, or captions without one. Paths are relative to the folder of the source.

    Args:
        key: path without suffix, or with it where two pictures differ in nothing else.
        image: path of the picture, or "".
        beside: suffixes, as they are spelled, of the files of the same name that belong to it.
        num_bytes: of the picture.
    """

    key: str
    image: str
    beside: tuple[str, ...]
    num_bytes: int


def folder_rows(files: Iterable[StoredFile]) -> Iterator[FolderRow]:
    """The rows that these files make.

    Args:
        files: in the order of their paths; only names that may belong together are held.
    """
    clusters: list[tuple[str, list[StoredFile]]] = []
    for file in files:
        base = posixpath.basename(file.path)
        if _suffix(base) not in {*IMAGE_SUFFIXES, *_BESIDE}:
            continue
        # Names with equal text before the first dot lie together in the listing, but for those of
        # folders: "a.b/x.jpg" comes between "a.a.jpg" and "a.jpg".
        prefix = file.path[: len(file.path) - len(base)] + base.partition(".")[0] + "."
        while clusters and not file.path.startswith(clusters[-1][0]):
            yield from _cluster_rows(clusters.pop()[1])
        if not clusters or clusters[-1][0] != prefix:
            clusters.append((prefix, []))
        clusters[-1][1].append(file)
    while clusters:
        yield from _cluster_rows(clusters.pop()[1])


def pack_rows(rows: Iterable[FolderRow]) -> bytes:
    """The rows of a slice, to travel with it: a few bytes each, as neighbouring names are alike."""
    lines = [json.dumps([row.key, row.image, row.beside, row.num_bytes]) for row in rows]
    return zlib.compress("\n".join(lines).encode())


def unpack_rows(packed: bytes) -> Iterator[FolderRow]:
    """What ``pack_rows`` was given."""
    for line in zlib.decompress(packed).splitlines():
        key, image, beside, num_bytes = json.loads(line)
        yield FolderRow(key=key, image=image, beside=tuple(beside), num_bytes=num_bytes)


def count_packed_rows(packed: bytes) -> int:
    """How many rows were planned."""
    text = zlib.decompress(packed)
    return text.count(b"\n") + bool(text)


def read_folder(
    piece: SourceSlice, *, retries: int = 6, timeout_s: float = 30.0
) -> Iterator[RawSample]:
    """The rows of a slice of a folder, a few files at a time.

    Raises:
        StoreError: if the store fails; rows that came before are not to be used. A file that is
            gone, or that this user may not read, is a row with a problem.
    """
    store = open_store(piece.url, retries=retries, timeout_s=timeout_s)
    make = functools.partial(_sample, store, piece.caption_key)
    rows = enumerate(unpack_rows(piece.packed_rows))
    if store.url.startswith("s3://"):
        return map_in_order(make, rows, num_threads=NUM_READ_THREADS)
    return map(make, rows)


def _sample(store: Store, caption_key: str, numbered: tuple[int, FolderRow]) -> RawSample:
    row_index, row = numbered
    stem = posixpath.splitext(row.image)[0] if row.image else row.key
    paths = [row.image] * bool(row.image) + [f"{stem}.{suffix}" for suffix in row.beside]
    parts: dict[str, bytes] = {}
    problem = None
    for path in paths:
        found = read_optional_file(store, path, is_text=path != row.image)
        if isinstance(found, tuple):
            problem = problem or found
        else:
            parts.setdefault(_suffix(path), found)
    sample = assemble(
        key=row.key,
        row_index=row_index,
        source=f"{store.url}#{paths[0]}",
        parts=parts,
        caption_key=caption_key,
    )
    # That a file could not be had says more than what its row lacks without it.
    return dataclasses.replace(sample, image=None, problem=problem) if problem else sample


def _cluster_rows(files: list[StoredFile]) -> Iterator[FolderRow]:
    """Rows of files whose names are equal up to their first dot."""
    images: dict[str, list[StoredFile]] = {}
    beside: dict[str, list[str]] = {}
    for file in files:
        stem, suffix = posixpath.splitext(file.path)
        if _suffix(file.path) in IMAGE_SUFFIXES:
            images.setdefault(stem, []).append(file)
        else:
            beside.setdefault(stem, []).append(suffix[1:])
    for stem in dict.fromkeys([*images, *beside]):
        found = images.get(stem, [])
        texts = tuple(beside.get(stem, []))
        for file in found:
            key = stem if len(found) == 1 else file.path
            yield FolderRow(key=key, image=file.path, beside=texts, num_bytes=file.num_bytes)
        if not found and any(text.lower() in CAPTION_SUFFIXES for text in texts):
            yield FolderRow(key=stem, image="", beside=texts, num_bytes=0)


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1][1:].lower()
