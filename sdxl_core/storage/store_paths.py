"""Names of files below a store: relative, forward slashes, never out of it."""

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from sdxl_core.contract.errors import ConfigError, StoreError


class StoredFile(NamedTuple):
    """One file of a store. ``path`` is relative to the store's URL, ``num_bytes`` its size."""

    path: str
    num_bytes: int


StoredFiles = list[StoredFile]  # a name for it: the stores have a method called `list`


def checked_path(path: str, *, url: str) -> str:
    """``path`` itself if it is a plain relative path that stays below the store.

    Paths also come out of commit records and archives, hence the check at the last moment.

    Raises:
        StoreError: for an empty or absolute path, an empty, ``.`` or ``..`` component, a NUL.
    """
    parts = path.split("/")
    if not path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise StoreError(
            f"{url}: {path!r} is not a path below this store; expected names joined by '/', "
            "with no '..', no empty part and no leading '/'",
            retryable=False,
        )
    return path


def checked_folder(folder: str, *, url: str) -> str:
    """Like ``checked_path`` for a folder: "" means the whole store, a trailing slash is allowed."""
    folder = folder.rstrip("/")
    return checked_path(folder, url=url) if folder else ""


def split_s3_url(url: str) -> tuple[str, str]:
    """Bucket and key prefix (no slash at either end, maybe "") of ``s3://bucket/prefix``.

    Raises:
        ConfigError: for a missing bucket, credentials in the URL, or a ``..`` component.
    """
    rest = url.split("://", 1)[1]
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise ConfigError(
            "an s3:// URL must not hold credentials (found '@' before the bucket's end); "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, in the environment"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise ConfigError(f"{url}: expected s3://BUCKET/PREFIX, found the bucket name {bucket!r}")
    prefix = prefix.strip("/")
    if prefix and any(part in ("", ".", "..") for part in prefix.split("/")):
        raise ConfigError(
            f"{url}: the prefix has an empty, '.' or '..' component; name the place directly"
        )
    return bucket, prefix


def local_path_of(url: str) -> str:
    """The path that a plain path or a ``file://`` URL names.

    Raises:
        ConfigError: for another scheme, or a ``file://`` URL with a host.
    """
    if "://" not in url:
        return url
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ConfigError(
            f"{url}: this kind of place is not supported; expected a local path, file:///path or s3://bucket/prefix"
        )
    return unquote(parts.path)
