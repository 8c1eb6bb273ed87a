"""A slice of an image-text source: read, and counted by other means.

The two share no parser, so that what the one loses, the other one misses: before a slice is
committed, ``count_slice(piece).num_rows`` must be the number of rows that came out.
"""

from collections.abc import Iterator

from sdxl_core.contract.samples import RawSample
from sdxl_core.storage.source_files import open_unchanged
from sdxl_core.storage.source_folder import count_packed_rows, read_folder
from sdxl_core.storage.source_slices import SliceCount, SourceSlice
from sdxl_core.storage.source_tables import read_table
from sdxl_core.storage.source_tar import read_tar
from sdxl_core.storage.table_count import count_csv_records, count_json_lines, count_row_groups
from sdxl_core.storage.tar_count import count_tar

__all__ = ["SliceCount", "SourceSlice", "count_slice", "read_slice"]

_COUNT_BUFFER_BYTES = 4 << 20


def read_slice(
    piece: SourceSlice, *, retries: int = 6, timeout_s: float = 30.0
) -> Iterator[RawSample]:
    """All rows of the slice, numbered from 0, a few in memory at a time.

    A row that cannot be used comes with its ``problem``. An error is one of the whole slice: what
    came before it is thrown away and, if the error is retryable, the slice is read again.

    Args:
        piece: of ``SourcePlan.slice``.
        retries: how often a passing failure of one request is tried again.
        timeout_s: longest wait for a store, seconds.

    Raises:
        StoreError: if bytes cannot be read; ``retryable`` tells a passing failure.
        SchemaError: if a file is not what it was when the run was planned.
    """
    if piece.format == "tar":
        return read_tar(
            piece.url,
            num_bytes=piece.num_bytes,
            caption_key=piece.caption_key,
            retries=retries,
            timeout_s=timeout_s,
        )
    if piece.format == "files":
        return read_folder(piece, retries=retries, timeout_s=timeout_s)
    return read_table(piece, retries=retries, timeout_s=timeout_s)


def count_slice(piece: SourceSlice, *, retries: int = 6, timeout_s: float = 30.0) -> SliceCount:
    """How many rows the slice has; headers, footers and line ends are all that is looked at.

    Of a folder it is the number of rows that were planned: files may go away, their rows may not.

    Raises:
        StoreError: if bytes cannot be read.
        SchemaError: if a file is not what it was when the run was planned.
    """
    if piece.format == "files":
        num_rows = count_packed_rows(piece.packed_rows)
        return SliceCount(num_members=num_rows, num_rows=num_rows)
    with open_unchanged(
        piece.url,
        num_bytes=piece.num_bytes,
        buffer_bytes=_COUNT_BUFFER_BYTES,
        retries=retries,
        timeout_s=timeout_s,
    ) as file:
        if piece.format == "tar":
            found = count_tar(file, piece.num_bytes)
            return SliceCount(num_members=found.num_members, num_rows=found.num_rows)
        if piece.format == "parquet":
            num_rows = count_row_groups(
                file, first=piece.first_row_group, num_groups=piece.num_row_groups, url=piece.url
            )
        else:
            assert piece.text_start is not None
            count = count_csv_records if piece.format == "csv" else count_json_lines
            num_rows = count(file, start=piece.text_start.offset, stop=piece.stop_byte)
    return SliceCount(num_members=num_rows, num_rows=num_rows)
