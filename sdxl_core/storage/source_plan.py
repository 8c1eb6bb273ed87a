"""Image-text sources of any usual layout, found and cut into slices before any work.

``plan_sources`` lists what is there and reads headers and footers, no pictures. A slice is read by
one task with ``sources.read_slice``; ``sources.count_slice`` counts it by other means.
"""

import dataclasses
import functools
import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.source_folder import FolderRow, folder_rows
from sdxl_core.storage.source_listing import (
    METADATA_NAMES,
    Listing,
    detect_kind,
    list_source,
)
from sdxl_core.storage.source_lists import NamedSource, name_sources
from sdxl_core.storage.source_members import DEFAULT_CAPTION_KEY
from sdxl_core.storage.source_slices import SourceKind, SourceSlice
from sdxl_core.storage.source_table_plan import TableRequest, plan_table, referenced_files
from sdxl_core.storage.source_units import Unit, archives, cut_folder
from sdxl_core.storage.table_files import TableFile, find_table_files

DEFAULT_ROWS_PER_SLICE: Final = 2048
DEFAULT_BYTES_PER_SLICE: Final = 256 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """One source. ``weight`` is for those who draw samples later: nothing is repeated here.

    ``own_settings`` are those of a list of sources that differ from the settings of all.
    """

    url: str
    kind: SourceKind
    weight: float
    num_slices: int
    num_rows: int | None
    own_settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourcePlan:
    """All sources and their slices. A few numbers for each slice; picklable.

    Args:
        sources: in the order in which they were named.
        units: what the slices are computed from.
        first_slices: int64 ``(U + 1,)``, number of the first slice of each unit, then of all.
        source_of_unit: int64 ``(U,)``.
    """

    sources: tuple[PlannedSource, ...]
    units: tuple[Unit, ...]
    first_slices: np.ndarray[Any, np.dtype[np.int64]]
    source_of_unit: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def num_slices(self) -> int:
        """How many slices there are; they are numbered from 0."""
        return int(self.first_slices[-1])

    @property
    def num_rows(self) -> int | None:
        """Rows of all sources; None if there are archives, which only reading counts."""
        counts = [unit.num_rows for unit in self.units]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def digest(self) -> str:
        """Identity of the input, hex: names and sizes of files, and content of text tables."""
        digest = hashlib.blake2b(digest_size=16)
        for source_index, unit in zip(self.source_of_unit, self.units, strict=True):
            source = self.sources[source_index]
            own = "".join(f" {name}={value}" for name, value in source.own_settings.items())
            text = f"{source_index} {source.weight} {unit.num_slices} {unit.digest}{own}\n"
            digest.update(text.encode())
        return digest.hexdigest()

    def slice(self, index: int) -> SourceSlice:
        """Slice number ``index``.

        Raises:
            IndexError: if there is no such slice.
        """
        if not 0 <= index < self.num_slices:
            raise IndexError(f"slice {index} of a plan with {self.num_slices} slices")
        # `right` steps over units without slices, which begin where the next one does.
        unit = int(np.searchsorted(self.first_slices, index, side="right")) - 1
        piece = self.units[unit].piece(index - int(self.first_slices[unit]))
        return dataclasses.replace(piece, index=index, source_index=int(self.source_of_unit[unit]))


def plan_sources(
    urls: Sequence[str],
    *,
    kind: SourceKind | Literal["auto"] = "auto",
    image_column: str | None = None,
    uri_column: str | None = None,
    caption_column: str | None = None,
    caption_key: str = DEFAULT_CAPTION_KEY,
    rows_per_slice: int = DEFAULT_ROWS_PER_SLICE,
    bytes_per_slice: int = DEFAULT_BYTES_PER_SLICE,
    retries: int = 6,
    timeout_s: float = 30.0,
) -> SourcePlan:
    """Finds all files of all sources and cuts them into slices.

    Args:
        urls: files, folders, patterns (``*``, ``{000..123}``), local or ``s3://``; ``URL@2.5``
            gives the source a weight; a ``.toml`` file lists sources, see ``source_lists``.
        kind: of sources without a kind of their own; "auto" looks at the names of the files.
        image_column: of tables, see ``SourceColumns``; None finds it by name.
        uri_column: likewise.
        caption_column: likewise.
        caption_key: key of JSON files that holds the caption where there is no caption file.
        rows_per_slice: most rows of a slice; an archive and a row group of parquet stay whole.
        bytes_per_slice: most bytes of pictures in a slice, with the same exceptions.
        retries: how often a passing failure of a store is tried again.
        timeout_s: longest wait for a store, seconds.

    Raises:
        ConfigError: if nothing usable is there, or a file is named by two sources.
        SchemaError: if a table has no such columns.
        StoreError: if a store cannot be listed or a table cannot be read.
    """
    named = name_sources(urls)
    _check_sizes(len(named), rows_per_slice, bytes_per_slice)
    request = TableRequest(
        image=image_column,
        uri=uri_column,
        caption=caption_column,
        caption_key=caption_key,
        rows_per_slice=rows_per_slice,
        bytes_per_slice=bytes_per_slice,
        retries=retries,
        timeout_s=timeout_s,
    )
    sources: list[PlannedSource] = []
    units: list[Unit] = []
    source_of_unit: list[int] = []
    for source_index, one in enumerate(named):
        source, found = _plan_source(one, kind, request)
        sources.append(source)
        units += found
        source_of_unit += [source_index] * len(found)
    _refuse_twice(units)
    return SourcePlan(
        sources=tuple(sources),
        units=tuple(units),
        first_slices=np.cumsum([0, *(unit.num_slices for unit in units)], dtype=np.int64),
        source_of_unit=np.array(source_of_unit, np.int64),
    )


def _check_sizes(num_urls: int, rows_per_slice: int, bytes_per_slice: int) -> None:
    if num_urls < 1 or rows_per_slice < 1 or bytes_per_slice < 1:
        raise ConfigError(
            "expected at least one source, rows_per_slice >= 1 and bytes_per_slice >= 1, found "
            f"{num_urls}, {rows_per_slice} and {bytes_per_slice}"
        )


def _plan_source(
    named: NamedSource, kind: SourceKind | Literal["auto"], request: TableRequest
) -> tuple[PlannedSource, list[Unit]]:
    kind = named.kind or kind
    request = dataclasses.replace(
        request,
        image=named.image_column or request.image,
        uri=named.uri_column or request.uri,
        caption=named.caption_column or request.caption,
        caption_key=named.caption_key or request.caption_key,
    )
    listing = list_source(named.url, retries=request.retries, timeout_s=request.timeout_s)
    found_kind = detect_kind(listing) if kind == "auto" else kind
    found = list(_units(listing, found_kind, request))
    counts = [unit.num_rows for unit in found]
    if not sum(unit.num_slices for unit in found):
        raise ConfigError(f"{named.url}: expected a {found_kind} source, found no rows there")
    source = PlannedSource(
        url=listing.url,
        kind=found_kind,
        weight=named.weight,
        own_settings=named.own_settings,
        num_slices=sum(unit.num_slices for unit in found),
        num_rows=None if None in counts else sum(count or 0 for count in counts),
    )
    return source, found


def _units(listing: Listing, kind: SourceKind, request: TableRequest) -> Iterator[Unit]:
    if kind == "webdataset":
        tars = [
            file
            for file in listing.files()
            if file.path.lower().endswith(".tar") or listing.paths == (file.path,)
        ]
        yield archives(listing.store.url, tars, caption_key=request.caption_key)
    elif kind == "table":
        yield from plan_table(_table_files(listing, request), request)
    else:
        yield from _folder_units(listing, request)


def _table_files(listing: Listing, request: TableRequest) -> list[TableFile]:
    find = functools.partial(find_table_files, retries=request.retries, timeout_s=request.timeout_s)
    if len(listing.paths) > 1:
        return [file for path in listing.paths for file in find(listing.store.join(path))]
    return find(listing.url)


def _folder_units(listing: Listing, request: TableRequest) -> Iterator[Unit]:
    """Tables named ``metadata.*``, as Hugging Face's imagefolder has them, and all other files."""
    listed: set[int] = set()
    tables = [f for f in listing.files() if posixpath.basename(f.path) in METADATA_NAMES]
    for table in tables:
        folder = posixpath.dirname(table.path)
        (file,) = find_table_files(
            listing.store.join(table.path), retries=request.retries, timeout_s=request.timeout_s
        )
        of_folder = dataclasses.replace(
            request, image=None, uri=request.uri or "file_name", within_folder=True
        )
        for unit in plan_table([file], of_folder):
            yield unit
            listed |= referenced_files(unit, of_folder, folder=folder)
    rows = (row for row in folder_rows(listing.files()) if not _is_listed(row, listed))
    yield cut_folder(
        listing.store.url,
        rows,
        rows_per_slice=request.rows_per_slice,
        bytes_per_slice=request.bytes_per_slice,
        caption_key=request.caption_key,
    )


def _is_listed(row: FolderRow, listed: set[int]) -> bool:
    return bool(row.image) and hash(row.image) in listed


def _refuse_twice(units: Sequence[Unit]) -> None:
    seen: set[tuple[str, ...]] = set()
    for unit in units:
        for number in range(unit.num_slices):
            piece = unit.piece(number)
            if piece.format != "tar" and number:
                break
            place = (piece.format, piece.url)
            if place in seen:
                raise ConfigError(
                    f"{piece.url}: two sources name it, so its rows would come twice; name it once"
                )
            seen.add(place)
