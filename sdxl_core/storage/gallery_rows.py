"""Rows of the output as the gallery's page reads them: scripts of some hundred rows each.

A script calls ``galleryChunk(number, {columns, rows})``. Values are what JavaScript can hold
without loss: integers beyond 2**53 (seeds) and non-finite numbers travel as text, long texts are
cut with a marker.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sdxl_core.storage.stores import Store

DATA_FOLDER = "_gallery"
ROWS_PER_CHUNK = 400
MAX_TEXT_CHARACTERS = 4000
_EXACT_IN_JAVASCRIPT = 1 << 53


@dataclasses.dataclass
class ChunkWriter:
    """Takes rows one by one and writes them as numbered scripts.

    Attributes:
        store: The output directory.
        chunks: Counts and shapes of each script, so that a filter knows which ones to skip.
        num_rows: Rows taken so far.
    """

    store: Store
    chunks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    num_rows: int = 0
    _rows: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, row: Mapping[str, Any], *, image: str | None) -> None:
        """Takes a row, and the path of the picture that stands for it."""
        if len(self._rows) == ROWS_PER_CHUNK or (self._rows and len(row) + 1 != len(self._rows[0])):
            self.close_chunk()
        self._rows.append({**row, "_image": image})
        self.num_rows += 1

    def close_chunk(self) -> None:
        """Writes the rows that are not written yet, if any."""
        if not self._rows:
            return
        number = len(self.chunks)
        columns = list(self._rows[0])
        data = {
            "columns": columns,
            "rows": [[plain_value(row.get(name)) for name in columns] for row in self._rows],
        }
        self.store.write_bytes(
            data_path(number), f"galleryChunk({number}, {script_json(data)});\n".encode()
        )
        self.chunks.append(
            {
                "num_rows": len(self._rows),
                "num_by_status": Counter(str(row.get("status")) for row in self._rows),
                "num_by_reason": Counter(str(row.get("reason") or "") for row in self._rows),
                "shapes": sorted({shape_of(row) for row in self._rows}),
            }
        )
        self._rows = []


def data_path(chunk: int) -> str:
    """Where the rows of a chunk lie."""
    return f"{DATA_FOLDER}/data-{chunk:04d}.js"


def shape_of(row: Mapping[str, Any]) -> str:
    """Height by width in pixels, as the page shows and filters it; "" if the row has none."""
    height, width = row.get("height"), row.get("width")
    return f"{height} × {width}" if height and width else ""


def plain_value(value: Any) -> Any:
    """``value`` as JSON that JavaScript reads without loss."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _EXACT_IN_JAVASCRIPT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > MAX_TEXT_CHARACTERS:
        return f"{text[:MAX_TEXT_CHARACTERS]}… [cut, {len(text)} characters in all]"
    return text


def script_json(value: Any) -> str:
    """JSON that is inert inside a script, whatever texts it holds: ASCII, and no ``<``."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
