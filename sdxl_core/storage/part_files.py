"""Where the files of a part lie, and which of those that lie there belong to it.

A part that is made in one go has plain names: ``table/part-00012.parquet``. A part that is opened
again keeps its files until its new commit record is put, so what is written meanwhile has names of
its own: ``table/part-00012.4f2a9c01.parquet``. The commit record says which files the part has;
others are leftovers of attempts that were killed, and deleting them loses nothing.
"""

import re
from collections.abc import Iterable

from sdxl_core.storage.parts import PartRecord, committed_parts, read_part_record
from sdxl_core.storage.stores import Store

TABLE_FOLDER, TAR_FOLDER, IMAGE_FOLDER = "table", "shards", "images"

_TABLE = re.compile(rf"{TABLE_FOLDER}/part-([0-9]{{5,}})(?:\.[0-9a-f]{{8}})?\.parquet")
_TAR = re.compile(rf"{TAR_FOLDER}/part-([0-9]{{5,}})(?:\.[0-9a-f]{{8}})?\.tar")


def table_path(part: int, token: str = "") -> str:
    """Where the table of ``part`` lies; ``token``: eight hex digits if the part is made again."""
    return f"{TABLE_FOLDER}/{_stem(part, token)}.parquet"


def tar_path(part: int, token: str = "") -> str:
    """Where the tar of ``part`` lies; with a token, that of the images made later."""
    return f"{TAR_FOLDER}/{_stem(part, token)}.tar"


def image_path(part: int, name: str) -> str:
    """Where the image file ``name`` of ``part`` lies."""
    return f"{IMAGE_FOLDER}/{_stem(part)}/{name}"


def part_of_table(path: str) -> int | None:
    """The part whose table ``path`` is, or None if it is another kind of file."""
    match = _TABLE.fullmatch(path)
    return int(match[1]) if match else None


def part_of_tar(path: str) -> int | None:
    """The part whose tar ``path`` is, or None if it is another kind of file."""
    match = _TAR.fullmatch(path)
    return int(match[1]) if match else None


def delete_replaced(store: Store, old: PartRecord, new: PartRecord) -> None:
    """Deletes the files that ``old`` named and ``new``, which has been put, does not."""
    kept = {file.path for file in new.files}
    for file in old.files:
        if file.path not in kept:
            store.delete(file.path)


def delete_leftovers(store: Store, reopened: Iterable[int]) -> list[str]:
    """Deletes what attempts at opening parts again have left; returns the paths.

    Nothing may be at work on the output. Tables and tars are looked at in all committed parts,
    because a reader by pattern would find rows twice; single images in the parts ``reopened``.
    """
    committed = committed_parts(store)
    found: dict[int, list[str]] = {}
    for folder, part_of in ((TABLE_FOLDER, part_of_table), (TAR_FOLDER, part_of_tar)):
        by_part: dict[int, list[str]] = {}
        for file in store.iter_files(folder):
            part = part_of(file.path)
            if part is not None and part in committed:
                by_part.setdefault(part, []).append(file.path)
        for part, paths in by_part.items():
            if len(paths) > 1:  # one alone is the part's own
                found.setdefault(part, []).extend(paths)
    for part in committed.intersection(reopened):
        images = store.iter_files(f"{IMAGE_FOLDER}/{_stem(part)}")
        found.setdefault(part, []).extend(file.path for file in images)
    deleted = []
    for part, paths in sorted(found.items()):
        named = {file.path for file in read_part_record(store, part).files}
        deleted += [path for path in paths if path not in named]
    for path in deleted:
        store.delete(path)
    return deleted


def _stem(part: int, token: str = "") -> str:
    return f"part-{part:05d}.{token}" if token else f"part-{part:05d}"
