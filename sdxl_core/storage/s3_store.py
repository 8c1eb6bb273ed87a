"""A store on S3, or on anything that speaks its protocol, through s3fs.

The endpoint, region and credentials come from the standard AWS environment variables and files
(``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE``, …) of the
process that uses the store. There is no rename on S3: one put makes an object visible as a whole.
"""

import dataclasses
import functools
import io
import logging
import mimetypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from sdxl_core.contract.errors import ConfigError, StoreError
from sdxl_core.storage.range_reader import RangeReader
from sdxl_core.storage.s3_errors import s3_error, s3_failures
from sdxl_core.storage.store_errors import call_with_retries
from sdxl_core.storage.store_paths import (
    StoredFile,
    StoredFiles,
    checked_folder,
    checked_path,
    split_s3_url,
)

T = TypeVar("T")

# What a connection depends on: another value makes another connection.
_ENVIRONMENT = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class S3Store:
    """Objects below a prefix. See ``sdxl_core.storage.stores.Store`` for what each method promises.

    Picklable: the connection belongs to the process that uses it and is made at the first use.
    """

    url: str
    retries: int = 6
    timeout_s: float = 30.0
    list_page_keys: int = 1000

    @classmethod
    def at(cls, url: str, *, retries: int = 6, timeout_s: float = 30.0) -> "S3Store":
        """The store at ``s3://bucket/prefix``; refuses early if the ``s3`` extra is missing."""
        bucket, prefix = split_s3_url(url)
        _import_s3fs()
        plain_url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        return cls(url=plain_url, retries=retries, timeout_s=timeout_s)

    def join(self, path: str) -> str:
        """The URL of the object at ``path``."""
        return f"{self.url}/{checked_path(path, url=self.url)}"

    def check(self) -> None:
        """Raises if the server or the bucket cannot be reached or may not be listed."""
        bucket, prefix = split_s3_url(self.url)

        def probe() -> Any:
            return self._call("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)

        # Fewer tries than in the middle of a job: a wrong endpoint should be told soon.
        quick = dataclasses.replace(self, retries=min(self.retries, 2))
        quick._run("use", self.url, probe)

    def read_bytes(self, path: str) -> bytes:
        """The whole object."""
        url = self.join(path)
        # One request: with more than one connection s3fs asks for the size first.
        return self._run(
            "read", url, lambda: cast(bytes, self._s3fs().cat_file(url, max_concurrency=1))
        )

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` (excluded)."""
        try:
            return self._read_known_range(path, start, stop)  # the server shortens it at the end
        except StoreError:
            if start < self.size(path):
                raise
            return b""

    def open_read(self, path: str, *, buffer_bytes: int = 1 << 20) -> BinaryIO:
        """The object as a seekable file that asks for ranges as they are needed."""
        reader = RangeReader(functools.partial(self._read_known_range, path), self.size(path))
        return cast(BinaryIO, io.BufferedReader(reader, buffer_bytes))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Puts the object; large data goes up in parts and appears when the last one is in."""
        url = self.join(path)
        self._run("write", url, lambda: self._s3fs().pipe_file(url, data, **_content_type(path)))

    def upload(self, local_path: Path, path: str) -> None:
        """Puts the content of a local file, in parts of 50 MiB if it is large."""
        url = self.join(path)
        self._run(
            "write", url, lambda: self._s3fs().put_file(str(local_path), url, **_content_type(path))
        )

    def download(self, path: str, local_path: Path) -> None:
        """Copies the object to ``local_path``, through a temporary file beside it."""
        url = self.join(path)
        partial = local_path.with_name(f".tmp-{os.getpid()}-{local_path.name}"[:200])

        def copy() -> None:
            local_path.parent.mkdir(parents=True, exist_ok=True)
            self._s3fs().get_file(url, str(partial))
            os.replace(partial, local_path)

        try:
            self._run("copy", url, copy)
        finally:
            partial.unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Is there an object at ``path``."""
        return self._head(path) is not None

    def size(self, path: str) -> int:
        """The object's size in bytes."""
        found = self._head(path)
        if found is None:
            raise StoreError(
                f"cannot read {self.join(path)}: no such object (or no such bucket); check the URL",
                retryable=False,
            )
        return int(found["ContentLength"])

    def iter_files(self, folder: str = "") -> Iterator[StoredFile]:
        """Every object below ``folder`` in the order of their keys, one page after another."""
        bucket, prefix = split_s3_url(self.url)
        start = f"{prefix}/" if prefix else ""
        folder = checked_folder(folder, url=self.url)
        request: dict[str, Any] = {"Bucket": bucket, "MaxKeys": self.list_page_keys}
        request["Prefix"] = f"{start}{folder}/" if folder else start
        while True:
            page = self._run(
                "list", f"{self.url}/{folder}", lambda: self._call("list_objects_v2", **request)
            )
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):  # some tools mark folders with empty objects
                    yield StoredFile(entry["Key"][len(start) :], int(entry["Size"]))
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def list(self, folder: str = "") -> StoredFiles:
        """Every object below ``folder``, sorted by path."""
        return list(self.iter_files(folder))

    def delete(self, path: str) -> None:
        """Removes the object; one that is not there is fine."""
        url = self.join(path)
        self._run("delete", url, lambda: self._s3fs().rm_file(url))

    def _head(self, path: str) -> dict[str, Any] | None:
        bucket, key = split_s3_url(self.join(path))

        def head() -> dict[str, Any] | None:
            try:
                return cast(dict[str, Any], self._call("head_object", Bucket=bucket, Key=key))
            except FileNotFoundError:
                return None

        return self._run("look at", self.join(path), head)

    def _read_known_range(self, path: str, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        url = self.join(path)
        return self._run(
            "read", url, lambda: cast(bytes, self._s3fs().cat_file(url, start=start, end=stop))
        )

    def _call(self, method: str, **request: Any) -> Any:
        return self._s3fs().call_s3(method, **request)

    def _s3fs(self) -> Any:
        # The process is part of the key: a connection and its thread do not survive a fork.
        return _connect(
            os.getpid(), self.timeout_s, tuple(os.environ.get(name) for name in _ENVIRONMENT)
        )

    def _run(self, action: str, url: str, operation: Callable[[], T]) -> T:
        def translated() -> T:
            try:
                return operation()
            except s3_failures() as error:
                failure = s3_error(error, action=action, url=url)
            # Raised outside the handler: the library's own error, whose text was not redacted,
            # must not travel along as context into logs and tracebacks.
            raise failure

        return call_with_retries(translated, retries=self.retries)


@functools.lru_cache(maxsize=8)
def _connect(pid: int, timeout_s: float, environment: tuple[str | None, ...]) -> Any:
    """A fresh s3fs file system without listing cache; one per process and environment."""
    # At DEBUG botocore writes signed headers, session token included, into the log.
    logging.getLogger("botocore").setLevel(logging.INFO)
    logging.getLogger("aiobotocore").setLevel(logging.INFO)
    filesystem = _import_s3fs().S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": timeout_s,
            "read_timeout": timeout_s,
            # Retrying is done in `call_with_retries` alone: nested retries multiply the waiting.
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        },
    )
    filesystem.retries = 1
    return filesystem


def _import_s3fs() -> Any:
    try:
        import s3fs
    except ImportError as error:
        raise ConfigError(
            f"s3:// needs the package s3fs, which cannot be imported ({error}); "
            "pip install sdxl-ray[s3]"
        ) from error
    return s3fs


def _content_type(path: str) -> dict[str, str]:
    """Lets a browser show a gallery and its pictures straight from the bucket."""
    guessed, _ = mimetypes.guess_type(path)
    return {"ContentType": guessed} if guessed else {}
