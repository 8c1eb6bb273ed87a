"""How many rows a tar file has, counted from its raw headers: the check on what was read.

Nothing is shared with the reader (``source_tar``, ``tar_members``), neither code nor the standard
library's ``tarfile``: a row that one of them loses, the other one misses. ``source_tar`` says what
a row is.
"""

import dataclasses
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

_BLOCK: Final = 512
_MAX_HEADER_BYTES: Final = 1 << 20
_NUMBERS: Final = ((100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (329, 8), (337, 8))
_SIZE: Final = slice(124, 136)
_REGULAR: Final = (b"0", b"\0", b"7")
_WITHOUT_DATA: Final = (b"1", b"2", b"3", b"4", b"5", b"6")
_GNU: Final = (b"L", b"K", b"S")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TarCount:
    """What lies in an archive: ``num_members`` with folders, and the rows that they make."""

    num_members: int
    num_rows: int


@dataclasses.dataclass(kw_only=True)
class _Member:
    name: bytes
    kind: bytes
    is_sparse: bool


class _Broken(Exception):
    """The archive cannot be followed any further."""


def count_tar(file: BinaryIO, num_bytes: int) -> TarCount:
    """Counts by one pass over the headers; of the members' data nothing is needed.

    Args:
        file: seekable, positioned anywhere.
        num_bytes: its size.
    """
    seen: set[tuple[bytes, bytes]] = set()
    keys: set[bytes] = set()
    num_members = num_odd = 0
    try:
        for member in _members(file, num_bytes):
            num_members += 1
            if member.kind == b"5":
                continue
            key, suffix = _key_and_suffix(member.name)
            is_plain = member.kind in _REGULAR and not member.is_sparse
            if is_plain and key is not None and (key, suffix) not in seen:
                seen.add((key, suffix))
                keys.add(key)
            else:
                num_odd += 1
    except _Broken:
        num_odd += 1
    return TarCount(num_members=num_members, num_rows=len(keys) + num_odd)


def _members(file: BinaryIO, num_bytes: int) -> Iterator[_Member]:
    """Members that lie wholly in the file; ``_Broken`` at the place where it breaks off."""
    position, has_end = 0, False
    long_name: bytes | None = None
    long_size: int | None = None
    is_sparse = False
    waits_for_member = False
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        position += len(block)
        if not block.strip(b"\0"):  # also the end of the file
            if waits_for_member or (not block and not has_end):
                raise _Broken
            if not block:
                return
            has_end = True
            continue
        name, kind, size = _parse(block)
        has_end = False
        if kind in (b"L", b"K", b"x", b"X", b"g"):
            if not 0 <= _padded(size) <= _MAX_HEADER_BYTES:
                raise _Broken
            body = file.read(_padded(size))
            if len(body) < size:
                raise _Broken
            position += _padded(size)
            waits_for_member = True
            if kind == b"L":
                long_name = body.split(b"\0", 1)[0]
            elif kind in (b"x", b"X"):
                records = dict(_pax_records(body))
                long_name = records.get(b"path", long_name)
                is_sparse = any(key.startswith(b"GNU.sparse.") for key in records)
                long_size = _decimal(records[b"size"]) if b"size" in records else None
            continue
        if kind == b"S":
            position = _after_sparse_map(file, block, position)
        size = long_size if long_size is not None else size
        if size < 0:
            raise _Broken
        if kind not in _WITHOUT_DATA:
            if position + size > num_bytes:
                raise _Broken
            position += _padded(size)
        name = long_name if long_name is not None else name
        yield _Member(name=name, kind=kind, is_sparse=is_sparse)
        long_name, long_size, is_sparse, waits_for_member = None, None, False, False


def _parse(block: bytes) -> tuple[bytes, bytes, int]:
    """Name, kind and size of a header."""
    if len(block) < _BLOCK:
        raise _Broken
    blanked = block[:148] + b" " * 8 + block[156:]
    signed = sum(struct.unpack("512b", blanked))
    if _number(block[148:156]) not in (sum(blanked), signed):
        raise _Broken
    for start, length in _NUMBERS:
        _number(block[start : start + length])
    name, kind = block[:100].split(b"\0", 1)[0], block[156:157]
    prefix = block[345:500].split(b"\0", 1)[0]
    if kind == b"\0" and name.endswith(b"/"):
        kind = b"5"  # a folder, in the oldest format
    if prefix and kind not in _GNU:
        name = prefix + b"/" + name
    return name, kind, _number(block[_SIZE])


def _number(field: bytes) -> int:
    """An octal number in ASCII, or a binary one that says so with its first byte."""
    if field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0o377:
        return int.from_bytes(field, "big", signed=True)
    digits = field.split(b"\0", 1)[0].strip()
    if not digits:
        return 0
    if not re.fullmatch(rb"[+-]?[0-7]+", digits):
        raise _Broken
    return int(digits, 8)


def _decimal(digits: bytes) -> int:
    return int(digits) if re.fullmatch(rb"[+-]?[0-9]{1,18}", digits) else 0


def _pax_records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """``LENGTH KEY=VALUE\\n``, where the length counts all of it."""
    position = 0
    while match := re.compile(rb"(\d{1,18}) ([^=]+)=").match(body, position):
        length = int(match[1])
        if length == 0:
            raise _Broken
        yield match[2], body[match.end() : position + length - 1]
        position += length


def _after_sparse_map(file: BinaryIO, block: bytes, position: int) -> int:
    """Where the data of an old GNU sparse member begins: its map may go on in further blocks."""
    has_more = block[482] != 0
    while has_more:
        extension = file.read(_BLOCK)
        if len(extension) < _BLOCK:
            raise _Broken
        position += _BLOCK
        has_more = extension[504] != 0
    return position


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _key_and_suffix(name: bytes) -> tuple[bytes | None, bytes]:
    """The key is None for a name that leaves the archive, or names nothing in it."""
    slashed = name.replace(b"\\", b"/")
    if slashed.startswith(b"/") or re.match(rb"[A-Za-z]:/", slashed) or not name.strip(b"./"):
        return None, b""
    if b".." in slashed.split(b"/"):
        return None, b""
    plain = re.sub(rb"(^|/)(\./|/)+", rb"\1", name)
    folder, slash, base = plain.removesuffix(b"/.").rstrip(b"/").rpartition(b"/")
    stem, _, suffix = base.partition(b".")
    if not stem:
        return folder + slash + base, b""
    return folder + slash + stem, suffix.lower()
