"""Small outputs made with the real commit protocol, to be checked and then broken."""

import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.storage.parts import (
    DatasetInfo,
    FileEntry,
    PartRecord,
    commit_part,
    write_run_files,
    write_summary,
)
from sdxl_core.storage.stores import Store, open_store

NUM_PARTS, ROWS_PER_PART = 3, 4


def write_output(folder: Path) -> Store:
    """An output of three parts, four rows and four image files each."""
    store = open_store(folder)
    num_rows = NUM_PARTS * ROWS_PER_PART
    info = DatasetInfo(name="images", version=1, num_parts=NUM_PARTS, num_rows=num_rows)
    write_run_files(store, 'model = "tiny"\n', info)
    for part in range(NUM_PARTS):
        rows = list(range(part * ROWS_PER_PART, (part + 1) * ROWS_PER_PART))
        write_part(store, part, rows)
    write_summary(store, {"num_rows": num_rows})
    return store


def write_part(store: Store, part: int, input_rows: list[int]) -> None:
    """One committed part, whose table has the given input rows."""
    table = io.BytesIO()
    pq.write_table(pa.table({"input_row": pa.array(input_rows, pa.int64())}), table)
    entries = [put(store, f"table/part-{part:05d}.parquet", table.getvalue())]
    entries += [
        put(store, f"images/part-{part:05d}/{row}.png", b"image of %d" % row) for row in input_rows
    ]
    record = PartRecord(
        part=part,
        num_rows=len(input_rows),
        num_by_status={"ok": len(input_rows)},
        num_by_reason={},
        files=tuple(entries),
    )
    commit_part(store, record)


def put(store: Store, path: str, data: bytes) -> FileEntry:
    store.write_bytes(path, data)
    return FileEntry(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
