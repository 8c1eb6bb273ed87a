"""A store on a local path (or whatever the operating system mounts there).

A write goes to a temporary file in the same folder, is flushed to the disk and renamed over the
target, so readers and a killed writer never see half a file. What a killed writer leaves behind is
named ``.tmp-…``: listings skip it, ``remove_leftovers`` deletes it.
"""

import dataclasses
import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

from sdxl_core.storage.store_errors import call_with_retries, local_error
from sdxl_core.storage.store_paths import StoredFile, StoredFiles, checked_folder, checked_path

T = TypeVar("T")

TEMPORARY_PREFIX = ".tmp-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalStore:
    """Files below a folder. ``sdxl_core.storage.stores.Store`` says what each method promises."""

    url: str
    retries: int = 6

    @classmethod
    def at(cls, path: str, *, retries: int = 6) -> "LocalStore":
        """The store at ``path``, which need not exist yet."""
        return cls(url=os.path.abspath(os.path.expanduser(path)), retries=retries)

    def join(self, path: str) -> str:
        """The absolute path of the file at ``path``."""
        return os.path.join(self.url, checked_path(path, url=self.url))

    def check(self) -> None:
        """Creates the folder if it is absent, and raises if that, or using it, cannot be."""

        def probe() -> None:
            os.makedirs(self.url, exist_ok=True)
            os.scandir(self.url).close()

        self._run("use", self.url, probe)

    def read_bytes(self, path: str) -> bytes:
        """The whole file."""
        return self._run("read", path, lambda: Path(self.join(path)).read_bytes())

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` (excluded)."""

        def read() -> bytes:
            with open(self.join(path), "rb") as file:
                file.seek(start)
                return file.read(max(0, stop - start))

        return self._run("read", path, read)

    def open_read(self, path: str, *, buffer_bytes: int = 1 << 20) -> BinaryIO:
        """The file, opened for reading."""
        return self._run("read", path, lambda: open(self.join(path), "rb", buffer_bytes))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Writes or replaces the file in one step."""

        def write() -> None:
            with _atomic_file(self.join(path)) as file:
                file.write(data)

        self._run("write", path, write)

    def upload(self, local_path: Path, path: str) -> None:
        """Copies ``local_path`` to ``path`` in one step."""

        def copy() -> None:
            with open(local_path, "rb") as source, _atomic_file(self.join(path)) as target:
                shutil.copyfileobj(source, target, 1 << 20)

        self._run("write", path, copy)

    def download(self, path: str, local_path: Path) -> None:
        """Copies the file to ``local_path`` in one step."""

        def copy() -> None:
            with open(self.join(path), "rb") as source, _atomic_file(str(local_path)) as target:
                shutil.copyfileobj(source, target, 1 << 20)

        self._run("copy", path, copy)

    def exists(self, path: str) -> bool:
        """Is there a file at ``path``."""
        return os.path.isfile(self.join(path))

    def size(self, path: str) -> int:
        """The file's size in bytes."""
        return self._run("look at", path, lambda: os.stat(self.join(path)).st_size)

    def iter_files(self, folder: str = "") -> Iterator[StoredFile]:
        """Every file below ``folder`` in the order of their paths, temporary ones left out."""
        folder = checked_folder(folder, url=self.url)
        try:
            yield from _walk(os.path.join(self.url, folder), f"{folder}/" if folder else "")
        except OSError as error:
            raise local_error(error, action="list", url=os.path.join(self.url, folder)) from error

    def list(self, folder: str = "") -> StoredFiles:
        """Every file below ``folder``, sorted by path."""
        return list(self.iter_files(folder))

    def delete(self, path: str) -> None:
        """Removes the file; one that is not there is fine."""
        self._run("delete", path, lambda: Path(self.join(path)).unlink(missing_ok=True))

    def _run(self, action: str, path: str, operation: Callable[[], T]) -> T:
        def translated() -> T:
            try:
                return operation()
            except OSError as error:
                raise local_error(error, action=action, url=os.path.join(self.url, path)) from error

        return call_with_retries(translated, retries=self.retries)


def remove_leftovers(store: LocalStore, *, older_than_s: float = 3600.0) -> int:
    """Deletes temporary files that killed writers left; returns how many.

    Args:
        store: The local store to clean.
        older_than_s: Spares files written more recently, which may belong to a live writer.
    """
    oldest_kept_s = time.time() - older_than_s
    num_removed = 0
    for folder, _, names in os.walk(store.url):
        for name in names:
            path = os.path.join(folder, name)
            try:
                if name.startswith(TEMPORARY_PREFIX) and os.stat(path).st_mtime <= oldest_kept_s:
                    os.unlink(path)
                    num_removed += 1
            except FileNotFoundError:  # another cleaner, or its writer, was faster
                continue
            except OSError as error:
                raise local_error(error, action="delete", url=path) from error
    return num_removed


@contextmanager
def _atomic_file(path: str) -> Iterator[IO[bytes]]:
    """A new file that takes the name ``path`` when the block ends well, and vanishes otherwise."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}")
    # Not `tempfile`: it makes files that only their owner can read, and the rename would keep that.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Makes the rename itself survive a power cut, on systems that let a folder be synchronised."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems refuse fsync on folders; the file's content is safe already.
        pass
    finally:
        os.close(descriptor)


def _walk(folder: str, prefix: str, above: tuple[str, ...] = ()) -> Iterator[StoredFile]:
    """Files below ``folder`` in the order of their whole paths, as S3 lists them.

    Links are followed, but not back to a folder on the way, which ``above`` has as real paths. What
    is no file (a pipe, a device, a link to nothing) is left out.
    """
    above = (*above, os.path.realpath(folder))
    try:
        with os.scandir(folder) as entries:
            # A folder sorts as "name/": "a.b" comes before "a/b", as in sorted whole paths.
            found = sorted((f"{e.name}/" if _is(e.is_dir) else e.name, e) for e in entries)
    except FileNotFoundError:
        return
    for name, entry in found:
        if name.endswith("/"):
            if not (entry.is_symlink() and os.path.realpath(entry.path) in above):
                yield from _walk(entry.path, prefix + name, above)
        elif not name.startswith(TEMPORARY_PREFIX) and _is(entry.is_file):
            try:
                yield StoredFile(prefix + name, entry.stat().st_size)
            except FileNotFoundError:  # deleted while the listing ran
                continue


def _is(kind: Callable[[], bool]) -> bool:
    """``DirEntry.is_dir`` or ``is_file``; a link to itself is neither."""
    try:
        return kind()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False
