"""One way to read and write bytes, on a local path and on S3.

Every input and output of every job goes through a ``Store``: a place with a URL, and files below it
named by relative paths with forward slashes. ``open_store`` picks ``LocalStore`` or ``S3Store``. A
store is small and picklable: it travels to workers as its URL and connects where it is used.

Promises of both: a written file appears whole or not at all; ``list`` shows what is there now;
every failure is a ``StoreError`` that names the place and tells a passing failure from a lasting
one; no operation waits for ever; credentials are never shown.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.local_store import LocalStore
from sdxl_core.storage.s3_store import S3Store
from sdxl_core.storage.store_paths import StoredFile, StoredFiles, local_path_of

__all__ = ["Store", "StoredFile", "open_file", "open_store", "split_url"]


class Store(Protocol):
    """A place that holds files. Methods raise ``StoreError``, after retries where they may help."""

    @property
    def url(self) -> str:
        """Absolute local path or ``s3://bucket/prefix``, no trailing slash."""
        ...

    def __hash__(self) -> int:
        """Stores of one place with one way to reach it are one key."""
        ...

    def join(self, path: str) -> str:
        """The URL of the file at ``path``."""
        ...

    def check(self) -> None:
        """Refuses early: raises if the place cannot be reached. It says nothing about any file."""
        ...

    def read_bytes(self, path: str) -> bytes:
        """The whole file."""
        ...

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` (included) to ``stop`` (excluded); shorter where the file ends before."""
        ...

    def open_read(self, path: str, *, buffer_bytes: int = 1 << 20) -> BinaryIO:
        """A seekable, read-only file; what is transferred is what is read, a buffer at a time."""
        ...

    def write_bytes(self, path: str, data: bytes) -> None:
        """Writes or replaces the file in one step; folders come into being as needed."""
        ...

    def upload(self, local_path: Path, path: str) -> None:
        """Like ``write_bytes`` with the content of a local file of any size, in bounded memory."""
        ...

    def download(self, path: str, local_path: Path) -> None:
        """Copies the file to a local path, which appears whole or not at all."""
        ...

    def exists(self, path: str) -> bool:
        """Is there a file (not a folder) at ``path``."""
        ...

    def size(self, path: str) -> int:
        """The file's size in bytes."""
        ...

    def iter_files(self, folder: str = "") -> Iterator[StoredFile]:
        """Every file below ``folder``, in the order of their paths, without holding them all."""
        ...

    def list(self, folder: str = "") -> StoredFiles:
        """Every file below ``folder``, sorted by path; an absent folder is an empty one."""
        ...

    def delete(self, path: str) -> None:
        """Removes the file; one that is not there is fine."""
        ...


def open_store(url: str | Path, *, retries: int = 6, timeout_s: float = 30.0) -> Store:
    """The store at ``url``. Nothing is read, created or connected to before it is used.

    Args:
        url: A local path (made absolute), ``file:///path`` or ``s3://bucket/prefix``. The endpoint
            and the credentials of S3 come from the standard AWS environment variables and files.
        retries: How often a passing failure is tried again, >= 0.
        timeout_s: Longest wait for a connection and for the next bytes, seconds, > 0. S3 only.

    Raises:
        ConfigError: for another scheme, a malformed URL, credentials in the URL, or ``s3://``
            without the ``s3`` extra.
    """
    text = str(url)
    if retries < 0 or timeout_s <= 0:
        raise ConfigError(f"expected retries >= 0 and timeout_s > 0, got {retries} and {timeout_s}")
    if not text:
        raise ConfigError("the path or URL is empty; expected a local path or s3://bucket/prefix")
    if text.startswith(("s3://", "s3a://")):
        return S3Store.at(text, retries=retries, timeout_s=timeout_s)
    return LocalStore.at(local_path_of(text), retries=retries)


def split_url(url: str) -> tuple[str, str]:
    """The URL of the folder that holds the file at ``url``, and the file's name.

    A bucket alone is a folder: its name is "".
    """
    folder, _, name = url.rstrip("/").rpartition("/")
    if folder.endswith(":/"):  # a bucket alone
        return url, ""
    return folder or ("/" if url.startswith("/") else "."), name


def open_file(url: str, *, retries: int = 6, timeout_s: float = 30.0) -> tuple[Store, str]:
    """The store that holds the single file at ``url``, and the file's path in it."""
    folder, name = split_url(url)
    return open_store(folder, retries=retries, timeout_s=timeout_s), name
