"""A gallery of an output: one page that opens from disk or from a bucket, and one picture.

``gallery.html`` needs no server and asks nothing of the network: it loads rows, some hundred at a
time, from ``_gallery/data-0000.js`` and so on, as a page on disk may load scripts but not fetch
files. ``contact-sheet.png`` shows up to 48 images with their prompts. Whatever prompts hold, it is
shown as text: rows travel as JSON and reach the page as text nodes only.
"""

import base64
import dataclasses
import hashlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from markupsafe import Markup
from PIL import Image

from sdxl_core.contract.errors import RowError, StoreError
from sdxl_core.storage.contact_sheet import MAX_CELLS, Cell, draw_contact_sheet, fitted
from sdxl_core.storage.gallery_rows import DATA_FOLDER, ChunkWriter, data_path, shape_of
from sdxl_core.storage.image_files import decode_image
from sdxl_core.storage.parts import PartRecord, Tally, read_part_records, tally_records
from sdxl_core.storage.sinks import read_image, read_part_images, read_part_table
from sdxl_core.storage.stores import Store
from sdxl_core.storage.threads import map_in_order

logger = logging.getLogger(__name__)

GALLERY_FILE = "gallery.html"
CONTACT_SHEET_FILE = "contact-sheet.png"
THUMBNAIL_PX = 384


@dataclasses.dataclass(frozen=True, kw_only=True)
class GallerySummary:
    """What was written: rows of the page, small copies of images, images on the contact sheet."""

    num_rows: int
    num_thumbnails: int
    num_cells: int


def write_gallery(
    store: Store, *, max_rows: int = 100_000, max_thumbnails: int = 2_000
) -> GallerySummary:
    """Writes ``gallery.html``, its data, and ``contact-sheet.png`` for the committed parts.

    Args:
        store: The output of generate.
        max_rows: Of a larger output, parts evenly spread over it are shown, and the page says so.
        max_thumbnails: A page cannot show images that are inside of tar or parquet files; so many
            of them get a small copy in ``_gallery/thumbs``.

    Raises:
        StoreError: if the output cannot be read or the gallery not be written. A single image that
            cannot be read is only left out.
    """
    records = list(read_part_records(store))
    tally = tally_records(records)
    chosen = _evenly(records, tally.num_rows, max_rows)
    ok_rows_per_cell = max(1.0, tally_records(chosen).num_by_status.get("ok", 0) / MAX_CELLS)
    writer = ChunkWriter(store)
    cells: list[Cell] = []
    thumbnails: list[str] = []
    num_ok = 0
    for row, image in _rows_with_images(store, chosen, max_thumbnails, thumbnails):
        if writer.num_rows == max_rows:
            break
        writer.add(row, image=image)
        if row["path"]:
            if num_ok >= len(cells) * ok_rows_per_cell and len(cells) < MAX_CELLS:
                cells += _cells(store, row)
            num_ok += 1
    writer.close_chunk()
    name = store.url.rsplit("/", 1)[-1]
    store.write_bytes(CONTACT_SHEET_FILE, draw_contact_sheet(cells, f"{name}: {_counts(tally)}"))
    store.write_bytes(GALLERY_FILE, _page(name, writer, tally))
    _delete_others(store, {data_path(n) for n in range(len(writer.chunks))} | set(thumbnails))
    return GallerySummary(
        num_rows=writer.num_rows, num_thumbnails=len(thumbnails), num_cells=len(cells)
    )


def _evenly(records: Sequence[PartRecord], num_rows: int, max_rows: int) -> Sequence[PartRecord]:
    """All parts if they have few enough rows, else some that are spread over all of them."""
    if num_rows <= max_rows:
        return records
    num_parts = max(1, len(records) * max_rows // num_rows)
    return [records[n * len(records) // num_parts] for n in range(num_parts)]


def _rows_with_images(
    store: Store, records: Sequence[PartRecord], max_thumbnails: int, thumbnails: list[str]
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Each row, and the path of a picture for it that a browser can show.

    Thumbnails that had to be made are written, and their paths appended to ``thumbnails``.
    """
    for record in records:
        table = read_part_table(store, record)
        made: dict[int, str] = {}
        if any("#" in (path or "") for path in table.column("path").to_pylist()):
            made = _write_thumbnails(store, table, max_thumbnails - len(thumbnails))
            thumbnails += made.values()
        for row in table.to_pylist():
            path = row["path"]
            yield row, made.get(row["input_row"]) if path and "#" in path else path


def _write_thumbnails(store: Store, table: pa.Table, max_thumbnails: int) -> dict[int, str]:
    """Small copies of the first images of a part; their paths by input row."""
    if max_thumbnails <= 0:
        return {}
    images = list(read_part_images(store, table).items())[:max_thumbnails]
    paths = map_in_order(
        lambda item: _write_thumbnail(store, item[0], item[1]), images, num_threads=8
    )
    return {row: path for (row, _), path in zip(images, paths, strict=True) if path}


def _write_thumbnail(store: Store, input_row: int, data: bytes) -> str | None:
    try:
        image = Image.fromarray(decode_image(data))
    except RowError as error:
        logger.warning("no thumbnail of row %d: %s", input_row, error)
        return None
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    path = f"{DATA_FOLDER}/thumbs/{input_row:08d}.jpg"
    store.write_bytes(path, buffer.getvalue())
    return path


def _cells(store: Store, row: Mapping[str, Any]) -> list[Cell]:
    """The row's cell of the contact sheet, or none if its image cannot be read."""
    try:
        rgb_HWC: npt.NDArray[np.uint8] = fitted(decode_image(read_image(store, row)))
    except (RowError, StoreError) as error:
        logger.warning("row %r is not on the contact sheet: %s", row.get("id"), error)
        return []
    notes = [shape_of(row), f"{row.get('steps')} steps", f"seed {row.get('seed')}"]
    return [Cell(rgb_HWC=rgb_HWC, prompt=str(row.get("prompt") or ""), note=" · ".join(notes))]


def _counts(tally: Tally) -> str:
    num_ok = tally.num_by_status.get("ok", 0)
    return f"{num_ok:,} images, {tally.num_rows - num_ok:,} failed rows"


def _page(name: str, writer: ChunkWriter, tally: Tally) -> bytes:
    index = {
        "chunks": writer.chunks,
        "num_rows": writer.num_rows,
        "num_rows_in_all": tally.num_rows,
        "num_by_status": tally.num_by_status,
        "num_by_reason": tally.num_by_reason,
        "shapes": sorted({shape for chunk in writer.chunks for shape in chunk["shapes"] if shape}),
    }
    loader = jinja2.PackageLoader("sdxl_core.storage", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    style, script = (
        loader.get_source(environment, file)[0] for file in ("gallery.css", "gallery.js")
    )
    page = environment.get_template("gallery.html").render(
        name=name,
        counts=_counts(tally),
        index=index,
        style=Markup(style),
        script=Markup(script),
        style_hash=_content_hash(style),
        script_hash=_content_hash(script),
    )
    return page.encode()


def _content_hash(text: str) -> str:
    """How a content security policy names an inline script or style that may be used."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _delete_others(store: Store, kept: set[str]) -> None:
    """Removes what an earlier and larger gallery left in the data folder."""
    for file in store.list(DATA_FOLDER):
        if file.path not in kept:
            store.delete(file.path)
