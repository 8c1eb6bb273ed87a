"""What a source is cut into: slices, each small enough for one task, and how its rows are found."""

import dataclasses
from typing import Literal

from sdxl_core.storage.source_members import DEFAULT_CAPTION_KEY
from sdxl_core.storage.text_tables import TextStart

SourceKind = Literal["webdataset", "table", "folder"]
SliceFormat = Literal["tar", "parquet", "csv", "jsonl", "files"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceColumns:
    """Which columns of a table are what. Exactly one of ``image`` and ``uri`` need be there.

    Args:
        image: the encoded picture: bytes, Hugging Face's ``{bytes, path}``, or base64 in CSV/JSONL.
        uri: path or URL of the picture, relative to the folder of the table's file.
        caption: a text, or a list of texts.
        key: name of the row; None numbers the rows of each file.
        within_folder: refuse paths that leave the folder of the table's file.
    """

    image: str | None
    uri: str | None
    caption: str | None
    key: str | None = None
    within_folder: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSlice:
    """A part of a source that one task reads, whole or not at all. Small and picklable.

    Args:
        index: number of the slice in the plan, from 0.
        source_index: number of the source that it belongs to, from 0.
        kind: of that source.
        format: what is read: a whole tar, rows of a table, or files of a folder.
        url: of the tar, of the table's file, or of the folder.
        num_bytes: size of the tar or of the table's file; of a folder, of the slice's images.
        first_row: first row within the table's file; 0 for others.
        num_rows: rows of the slice; None where only reading tells, which is a tar.
        first_row_group: of a parquet file.
        num_row_groups: of a parquet file.
        columns: of a table.
        text_start: where the rows of a CSV or JSONL file begin.
        stop_byte: where the first row after them begins.
        packed_rows: the files of a folder's slice, as ``source_folder.pack_rows`` makes them.
        caption_key: key of JSON files beside images that holds the caption.
    """

    index: int
    source_index: int
    kind: SourceKind
    format: SliceFormat
    url: str
    num_bytes: int
    first_row: int = 0
    num_rows: int | None = None
    first_row_group: int = 0
    num_row_groups: int = 0
    columns: SourceColumns | None = None
    text_start: TextStart | None = None
    stop_byte: int = 0
    packed_rows: bytes = b""
    caption_key: str = DEFAULT_CAPTION_KEY


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceCount:
    """What a slice holds, counted without its reader.

    ``num_members`` counts the members of a tar, folders included; elsewhere it is ``num_rows``.
    """

    num_members: int
    num_rows: int
