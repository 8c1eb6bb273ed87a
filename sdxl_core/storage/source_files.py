"""Files of a source: opened as they were planned; pictures in files of their own, read one by one.

A picture that is gone is told apart from a store that fails.
"""

import contextlib
import io
import posixpath
import re
from collections.abc import Iterator
from typing import BinaryIO

from sdxl_core.contract.errors import ConfigError, StoreError
from sdxl_core.contract.samples import RejectReason
from sdxl_core.storage.source_members import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, Problem, too_large
from sdxl_core.storage.stores import Store, open_file
from sdxl_core.storage.text_tables import changed_file

NUM_READ_THREADS = 8
NOT_READ_SCHEMES = ("http", "https", "ftp")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@contextlib.contextmanager
def open_unchanged(
    url: str,
    *,
    num_bytes: int,
    buffer_bytes: int = 1 << 20,
    retries: int = 6,
    timeout_s: float = 30.0,
) -> Iterator[BinaryIO]:
    """The file at ``url``, opened for reading. On S3 that is one request before those of reading.

    Args:
        url: of one file.
        num_bytes: its size when the run was planned.
        buffer_bytes: read at a time.
        retries: how often a passing failure is tried again.
        timeout_s: longest wait for the store, seconds.

    Raises:
        StoreError: if it cannot be read.
        SchemaError: if its size is not ``num_bytes`` any more.
    """
    store, name = open_file(url, retries=retries, timeout_s=timeout_s)
    with store.open_read(name, buffer_bytes=buffer_bytes) as file:
        found_bytes = file.seek(0, io.SEEK_END)
        if found_bytes != num_bytes:
            raise changed_file(url, f"{found_bytes} bytes", f"{num_bytes}")
        file.seek(0)
        yield file


def read_optional_file(store: Store, path: str, *, is_text: bool = False) -> bytes | Problem:
    """The file's bytes, or why this one file gives none although its store works.

    Args:
        store: where it lies.
        path: its place there.
        is_text: with the smaller limit of captions and metadata.

    Raises:
        StoreError: if the store itself fails, for now or for good: that is not this row's fault.
    """
    limit = MAX_TEXT_BYTES if is_text else MAX_IMAGE_BYTES
    try:
        url = store.join(path)
    except StoreError as error:  # a key that S3 allows, such as a//b.jpg
        return RejectReason.UNSAFE_MEMBER, str(error)
    is_local = not store.url.startswith("s3://")
    if is_local and not store.exists(path):  # nor is it a pipe, which would be waited for
        return RejectReason.FILE_MISSING, f"cannot read {url}: no such file"
    try:
        data = store.read_range(path, 0, limit + 1)
    except StoreError as error:
        if error.retryable:
            raise
        if not is_local and store.exists(path):
            raise
        return RejectReason.FILE_MISSING, str(error)
    return too_large("txt" if is_text else "jpg", len(data)) or data


def read_uri(
    uri: str, *, folder: str, within_folder: bool, retries: int, timeout_s: float
) -> bytes | Problem:
    """The picture that a cell of a table points to; see ``read_optional_file``.

    Args:
        uri: a path relative to ``folder``, an absolute path, ``file://`` or ``s3://``.
        folder: URL of the folder of the table's file.
        within_folder: refuse what is not below ``folder``.
        retries: how often a passing failure is tried again.
        timeout_s: longest wait for the store, seconds.
    """
    scheme = _SCHEME.match(uri)
    if scheme and scheme[1].lower() in NOT_READ_SCHEMES:
        what = f"{uri}: {scheme[1]}:// is not read; download the pictures first, with img2dataset"
        return RejectReason.FILE_MISSING, what
    is_relative = not scheme and not uri.startswith("/")
    if within_folder and (not is_relative or ".." in re.split(r"[/\\]", uri)):
        return RejectReason.UNSAFE_MEMBER, f"{uri!r} is not below {folder}"
    url = joined(folder, uri) if is_relative else uri
    try:
        if "\0" in url or url.rstrip("/") == folder:
            raise ConfigError(f"{uri!r} names no file")
        store, name = open_file(url, retries=retries, timeout_s=timeout_s)
    except ConfigError as error:
        return RejectReason.FILE_MISSING, str(error)
    if name in ("", ".", ".."):
        return RejectReason.FILE_MISSING, f"{uri!r} names no file"
    return read_optional_file(store, name)


def joined(folder: str, path: str) -> str:
    """URL of the relative ``path`` below or beside ``folder``, with ``..`` worked out."""
    scheme, separator, rest = folder.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(rest, path))
