"""Members of a tar file, by the standard library, with what it passes over in silence.

``tarfile`` stops at the first end marker, and at a damaged header just as if it were one: what
comes after is lost without a word. Here both are looked at.
"""

import re
import tarfile
from collections.abc import Generator
from typing import Any, BinaryIO, Final, cast

_BLOCK_BYTES: Final = tarfile.BLOCKSIZE
_MAX_HEADER_BYTES: Final = 1 << 20
_LEAVES_THE_ARCHIVE = re.compile(r"[/\\]|[A-Za-z]:[/\\]|(.*[/\\])?\.\.([/\\]|\Z)", re.DOTALL)
# What the standard library raises on a damaged header, in its several ways.
_DAMAGE: Final = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError)


def tar_members(file: BinaryIO, num_bytes: int) -> Generator[tarfile.TarInfo, None, str | None]:
    """Members that lie wholly in the file, of all archives that were put one after another in it.

    Args:
        file: seekable.
        num_bytes: its size.

    Returns:
        (as the generator's value) None, or where and how the file breaks off.
    """
    start, has_end = 0, False
    while True:
        start, num_zeros = _skip_zeros(file, start)
        has_end = has_end or num_zeros > 0
        if start >= num_bytes:
            return None if has_end else f"it ends at byte {num_bytes} without an end marker"
        file.seek(start)
        try:
            archive = tarfile.open(  # noqa: SIM115 - holds nothing of its own
                fileobj=cast(Any, _HeaderFile(file, start)),
                mode="r:",
                encoding="utf-8",
                errors="surrogateescape",
            )
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # or it keeps every one
                if info.size < 0:
                    return f"{info.name!r} at byte {start + info.offset} has a negative size"
                info.offset_data += start
                stop = info.offset_data + (info.size if _has_data(info) else 0)
                if stop > num_bytes:
                    return f"it ends at byte {num_bytes}, inside of {info.name!r}"
                yield info
        except _DAMAGE as error:
            return f"after byte {start} it is damaged: {error}"
        start, has_end = start + int(archive.offset), False
        file.seek(start)
        block = file.read(_BLOCK_BYTES)
        if block.strip(b"\0"):
            return f"byte {start} should begin a member, but has no valid header"


def _has_data(info: tarfile.TarInfo) -> bool:
    return info.isreg() or info.type not in tarfile.SUPPORTED_TYPES


def _skip_zeros(file: BinaryIO, start: int) -> tuple[int, int]:
    """The first block from ``start`` on that is not all zeros, and how many zero bytes it skips."""
    file.seek(start)
    position = start
    while block := file.read(_BLOCK_BYTES):
        if block.strip(b"\0"):
            break
        position += len(block)
    return position, position - start


def unsafe_member(info: tarfile.TarInfo) -> str | None:
    """Why the member is no plain file inside of the archive, or None if it is one."""
    kind = ""
    if info.issym() or info.islnk():
        kind = f"a link to {info.linkname!r}"
    elif info.issparse():
        kind = "a sparse file"
    elif not info.isreg():
        kind = f"a device, a pipe or of an unknown type {info.type!r}"
    elif _LEAVES_THE_ARCHIVE.match(info.name) or not info.name.strip("./"):
        kind = "named so that it leaves the archive"
    if not kind:
        return None
    return f"{info.name!r} is {kind}; expected plain files inside"


def split_member_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: ``./a/b.seg.PNG`` gives ``a/b`` and ``seg.png``.

    A name that begins with a dot, as the shadow files of some systems do, is a key of its own.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    base, dot, suffix = parts[-1].partition(".")
    if not base:
        return "/".join(parts), ""
    # Bytes have the lower case of ASCII alone: it is the same in every locale and library.
    lower = suffix.encode("utf-8", "surrogateescape").lower().decode("utf-8", "surrogateescape")
    return "/".join([*parts[:-1], base]), lower if dot else ""


class _HeaderFile:
    """What ``tarfile`` reads headers from: it starts at a place, and never reads much at once.

    The size of an extended header is what the archive says; nothing else limits it.
    """

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self._start = start

    def read(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {num_bytes} bytes")
        return self._file.read(num_bytes)

    def seek(self, position: int) -> int:
        return self._file.seek(self._start + position) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start
