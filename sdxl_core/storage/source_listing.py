"""What lies at a source's URL: one file, a folder, a pattern with ``*`` or ``{000..123}``."""

import dataclasses
import itertools
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator

from fsspec.utils import glob_translate

from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.source_members import IMAGE_SUFFIXES
from sdxl_core.storage.source_slices import SourceKind
from sdxl_core.storage.store_paths import local_path_of
from sdxl_core.storage.stores import Store, StoredFile, open_file, open_store
from sdxl_core.storage.threads import map_in_order

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_TABLE_SUFFIXES = ("parquet", "pq", "csv", "jsonl", "ndjson")
_NUM_LOOKED_AT = 10_000
_NUM_LOOK_THREADS = 16
_MAGIC = re.compile(r"[*?\[]")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WEIGHT = re.compile(r"(.+)@(\d+(?:\.\d*)?|\.\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of one source: those below a folder, all or those that a pattern matches.

    ``paths`` are single files; without any, ``pattern`` (a regular expression) or all files.
    """

    url: str
    store: Store
    paths: tuple[str, ...] = ()
    pattern: str = ""

    def files(self) -> Iterator[StoredFile]:
        """The files as they are now, in the order of their paths; hidden ones are left out."""
        if self.paths:
            sizes = map_in_order(self.store.size, self.paths, num_threads=_NUM_LOOK_THREADS)
            yield from map(StoredFile, self.paths, sizes)
            return
        matches = re.compile(self.pattern).match if self.pattern else None
        for file in self.store.iter_files():
            hidden = any(part.startswith(".") for part in file.path.split("/"))
            if not hidden and (matches is None or matches(file.path)):
                yield file


def split_weight(url: str) -> tuple[str, float]:
    """URL and weight of ``URL@2.5``; 1.0 without one. An existing local path is taken as it is.

    Raises:
        ConfigError: for a weight of 0.
    """
    match = _WEIGHT.fullmatch(url)
    if not match or (not url.startswith("s3") and os.path.exists(url)):
        return url, 1.0
    weight = float(match[2])
    if weight <= 0:
        raise ConfigError(f"{url}: expected a weight above 0, found {match[2]}")
    return match[1], weight


def list_source(url: str, *, retries: int = 6, timeout_s: float = 30.0) -> Listing:
    """What ``url`` stands for. Of a folder or a pattern nothing is listed yet.

    Raises:
        ConfigError: if it cannot be a source.
    """
    if not url.startswith(("s3://", "s3a://")):
        url = os.path.abspath(os.path.expanduser(local_path_of(url)))
    store, name = open_file(url, retries=retries, timeout_s=timeout_s)
    if name and store.exists(name):
        return Listing(url=url, store=store, paths=(name,))
    if os.path.isdir(url):  # whatever its name: "photos [2020]" is no pattern
        return Listing(url=url, store=open_store(url, retries=retries, timeout_s=timeout_s))
    urls = [url]
    while _RANGE.search(urls[0]):
        urls = [whole for part in urls for whole in _expanded(part)]
    if _MAGIC.search(url):
        if urls != [url]:
            raise ConfigError(f"{url}: expected {{..}} or *, found both; use * alone")
        folder, pattern = _split_pattern(url)
        store = open_store(folder, retries=retries, timeout_s=timeout_s)
        return Listing(url=url, store=store, pattern=glob_translate(pattern))
    if urls != [url]:
        folder = _split_pattern(url)[0]
        store = open_store(folder, retries=retries, timeout_s=timeout_s)
        start = len(folder.rstrip("/")) + 1
        return Listing(url=url, store=store, paths=tuple(one[start:] for one in urls))
    return Listing(url=url, store=open_store(url, retries=retries, timeout_s=timeout_s))


def detect_kind(listing: Listing) -> SourceKind:
    """What kind of source it is, by the names of its first ten thousand files.

    Raises:
        ConfigError: if there is nothing usable, or archives and loose pictures side by side.
    """
    found: Counter[str] = Counter()
    paths = listing.paths or (file.path for file in listing.files())
    for path in itertools.islice(paths, _NUM_LOOKED_AT):
        base = posixpath.basename(path).lower()
        suffix = base.rpartition(".")[2]
        if base in METADATA_NAMES and not listing.paths:
            found["folder"] += 1
        elif suffix == "tar":
            found["webdataset"] += 1
        elif suffix in IMAGE_SUFFIXES:
            found["folder"] += 1
        elif suffix in _TABLE_SUFFIXES:
            found["table"] += 1
        elif base.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".zip")):
            found["compressed"] += 1
    if found["webdataset"] and found["folder"]:
        raise ConfigError(
            f"{listing.url}: found .tar archives and loose pictures side by side, which may be the "
            "same rows twice; name them as two sources, such as '…/*.tar'"
        )
    for kind in ("webdataset", "folder", "table"):
        if found[kind]:
            return kind
    what = "compressed archives; unpack them to .tar first" if found["compressed"] else "none"
    raise ConfigError(
        f"{listing.url}: expected .tar archives, tables (.parquet, .csv, .jsonl) or pictures; "
        f"found {what}"
    )


def _expanded(url: str) -> list[str]:
    match = _RANGE.search(url)
    if match is None:
        return [url]
    first, last = int(match[1]), int(match[2])
    if first > last or last - first >= 1_000_000:
        raise ConfigError(f"{url}: {match[0]} is no range of at most a million numbers")
    width = len(match[1])
    head, tail = url[: match.start()], url[match.end() :]
    return [f"{head}{number:0{width}d}{tail}" for number in range(first, last + 1)]


def _split_pattern(url: str) -> tuple[str, str]:
    """The folder above the first component with a pattern, and the rest."""
    scheme, separator, rest = url.rpartition("://")
    parts = rest.split("/")
    first = next(n for n, part in enumerate(parts) if _MAGIC.search(part) or _RANGE.search(part))
    return scheme + separator + ("/".join(parts[:first]) or "/"), "/".join(parts[first:])
