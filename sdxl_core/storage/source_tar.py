"""Samples of one WebDataset tar, with every member accounted for.

Rows of an archive, here and in ``tar_count`` (which counts them by other means):

- one for each key, however its members are scattered over the archive. The key is the member's
  name up to the first dot of its last component;
- one for each further member of equal key and suffix, one for each member that is no plain file
  or whose name leaves the archive: rejected;
- one for the rest of an archive that breaks off, in the middle of a member or before the end
  marker: rejected. Members that lie wholly before that place are read.

Folders inside the archive are no rows.
"""

import contextlib
import dataclasses
import io
import shutil
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

from sdxl_core.contract.samples import RawSample, RejectReason
from sdxl_core.storage.source_files import open_unchanged
from sdxl_core.storage.source_members import (
    DEFAULT_CAPTION_KEY,
    READ_SUFFIXES,
    Problem,
    assemble,
    too_large,
)
from sdxl_core.storage.store_errors import local_error
from sdxl_core.storage.tar_members import split_member_name, tar_members, unsafe_member
from sdxl_core.storage.text_tables import changed_file

_COPY_BYTES: Final = 8 << 20


@dataclasses.dataclass(kw_only=True)
class _Row:
    """One row to be: its members (offset and size in bytes, by suffix), or its problem."""

    key: str
    member: str
    members: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    problem: Problem | None = None


def read_tar(
    url: str,
    *,
    num_bytes: int,
    caption_key: str = DEFAULT_CAPTION_KEY,
    retries: int = 6,
    timeout_s: float = 30.0,
) -> Iterator[RawSample]:
    """The rows of the archive at ``url``, one sample in memory at a time.

    An archive on S3 is copied to an unnamed temporary file first, so no row comes before the whole
    archive has arrived.

    Args:
        url: of one uncompressed tar file.
        num_bytes: its size when the run was planned.
        caption_key: key of a ``.json`` member that holds the caption.
        retries: how often a passing failure is tried again.
        timeout_s: longest wait for the store, seconds.

    Raises:
        StoreError: if the archive cannot be read; rows that came before are not to be used.
        SchemaError: if its size is not ``num_bytes`` any more.
    """
    with local_archive(url, num_bytes=num_bytes, retries=retries, timeout_s=timeout_s) as file:
        try:
            rows = _rows(file, num_bytes)
        except OSError as error:
            raise local_error(error, action="read", url=url) from error
        for row_index, row in enumerate(rows):
            yield _sample(file, row, row_index, url, caption_key)


@contextlib.contextmanager
def local_archive(
    url: str, *, num_bytes: int, retries: int = 6, timeout_s: float = 30.0
) -> Iterator[BinaryIO]:
    """The file at ``url``, opened on this machine; a copy that has no name if it is elsewhere.

    Raises:
        StoreError: if it cannot be read, or there is no room for the copy.
        SchemaError: if its size is not ``num_bytes``.
    """
    with contextlib.ExitStack() as stack:
        opened = open_unchanged(
            url,
            num_bytes=num_bytes,
            buffer_bytes=_COPY_BYTES,
            retries=retries,
            timeout_s=timeout_s,
        )
        file = stack.enter_context(opened)
        if url.startswith(("s3://", "s3a://")):
            file = stack.enter_context(contextlib.closing(_copy_of(file, url)))
            if file.seek(0, io.SEEK_END) != num_bytes:
                raise changed_file(url, f"{file.tell()} bytes", f"{num_bytes}")
            file.seek(0)
        yield file


def _rows(file: BinaryIO, num_bytes: int) -> list[_Row]:
    """All rows, in the order of their first members; a few hundred bytes each."""
    rows: list[_Row] = []
    rows_by_key: dict[str, _Row] = {}
    members = tar_members(file, num_bytes)
    while True:
        try:
            info = next(members)
        except StopIteration as end:
            if end.value is not None:
                problem = RejectReason.TRUNCATED_ARCHIVE, end.value
                rows.append(_Row(key="(rest)", member="(rest)", problem=problem))
            return rows
        if info.isdir():
            continue
        why = unsafe_member(info)
        if why:
            unsafe = (RejectReason.UNSAFE_MEMBER, why)
            rows.append(_Row(key=info.name, member=info.name, problem=unsafe))
            continue
        key, suffix = split_member_name(info.name)
        row = rows_by_key.get(key)
        if row is None:
            row = rows_by_key[key] = _Row(key=key, member=info.name)
            rows.append(row)
        if suffix in row.members:
            detail = f"{info.name}: the key {key!r} has a .{suffix} member already"
            duplicate = (RejectReason.DUPLICATE_KEY, detail)
            rows.append(_Row(key=key, member=info.name, problem=duplicate))
        else:
            row.members[suffix] = (info.offset_data, info.size)


def _sample(file: BinaryIO, row: _Row, row_index: int, url: str, caption_key: str) -> RawSample:
    source = f"{url}#{_printable(row.member)}"
    key = _printable(row.key)
    problem = row.problem
    parts: dict[str, bytes] = {}
    for suffix, (offset, num_bytes) in row.members.items():
        if suffix not in READ_SUFFIXES:
            continue
        problem = problem or too_large(suffix, num_bytes)
        if problem is None:
            parts[suffix] = _read(file, offset, num_bytes, url)
    if problem is not None:
        return RawSample(
            key=key, row_index=row_index, source=source, image=None, captions=(), problem=problem
        )
    return assemble(
        key=key,
        row_index=row_index,
        source=source,
        parts=parts,
        caption_key=caption_key,
        other_suffixes=tuple(_printable(s) for s in row.members if s not in READ_SUFFIXES),
    )


def _read(file: BinaryIO, offset: int, num_bytes: int, url: str) -> bytes:
    try:
        file.seek(offset)
        data = file.read(num_bytes)
    except OSError as error:
        raise local_error(error, action="read", url=url) from error
    if len(data) != num_bytes:
        raise changed_file(url, f"{len(data)} bytes at byte {offset}", f"{num_bytes}")
    return data


def _copy_of(file: BinaryIO, url: str) -> BinaryIO:
    copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - the caller closes it
    try:
        shutil.copyfileobj(file, copy, _COPY_BYTES)
    except OSError as error:
        copy.close()
        where = f"a temporary copy of {url} in {tempfile.gettempdir()} (TMPDIR chooses the place)"
        raise local_error(error, action="write", url=where) from error
    except BaseException:
        copy.close()
        raise
    return copy


def _printable(name: str) -> str:
    """Bytes of a name that are not UTF-8, spelled out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
