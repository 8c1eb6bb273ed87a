"""Sources by name on the command line, or many of them in a TOML file, each with what is its own.

[[source]]
url = "s3://bucket/laion/{00000..00099}.tar"
weight = 2.5

[[source]]
url = "photos"               # beside the TOML file
kind = "folder"
caption_key = "title"
"""

import dataclasses
import os
from collections.abc import Iterable
from typing import Literal

from sdxl_core.contract.config import config, load_toml
from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.source_listing import split_weight
from sdxl_core.storage.source_slices import SourceKind
from sdxl_core.storage.store_paths import local_path_of

LIST_SUFFIX = ".toml"


@config
class NamedSource:
    """One source, and its own settings where they differ from those of all sources."""

    url: str
    """File, folder or pattern, local or s3://; relative ones in a list are beside the list."""
    weight: float = 1.0
    """How much it is to count for those who draw samples later; above 0."""
    kind: SourceKind | Literal["auto"] | None = None
    """What it is; auto looks at the names of files."""
    image_column: str | None = None
    """Column of a table that holds image files."""
    uri_column: str | None = None
    """Column of a table that holds paths or s3:// URLs of image files."""
    caption_column: str | None = None
    """Column of a table that holds captions."""
    caption_key: str | None = None
    """Key of the JSON beside an image that holds the caption."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"{self.url}: expected a weight above 0, found {self.weight}")

    @property
    def own_settings(self) -> dict[str, str]:
        """What differs from all sources, by name; the weight apart."""
        names = ("kind", "image_column", "uri_column", "caption_column", "caption_key")
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}


@config
class _SourceList:
    """What a TOML file of sources holds."""

    source: tuple[NamedSource, ...]
    """The sources."""


def name_sources(texts: Iterable[str]) -> list[NamedSource]:
    """The sources that ``texts`` name: URLs, ``URL@WEIGHT``, or TOML files that list sources.

    Raises:
        ConfigError: a list cannot be read or has unknown keys, or a weight is not above 0.
    """
    found: list[NamedSource] = []
    for text in texts:
        if text.endswith(LIST_SUFFIX):
            found += _read_list(text)
        else:
            url, weight = split_weight(text)
            found.append(NamedSource(url=url, weight=weight))
    return found


def _read_list(url: str) -> list[NamedSource]:
    if "://" in url and not url.startswith("file://"):
        raise ConfigError(f"{url}: a list of sources is read from a local file; copy it here")
    path = os.path.abspath(os.path.expanduser(local_path_of(url)))
    listed = load_toml(_SourceList, path).source
    if not listed:
        raise ConfigError(f"{path}: expected at least one [[source]], found none")
    return [_beside(path, source) for source in listed]


def _beside(path: str, source: NamedSource) -> NamedSource:
    """``source`` with a URL that does not depend on where the command runs."""
    if "://" in source.url:
        return source
    url = os.path.join(os.path.dirname(path), os.path.expanduser(source.url))
    return dataclasses.replace(source, url=url)
