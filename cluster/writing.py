"""From finished rows to a committed part, and the few numbers about it that the driver gets."""

import dataclasses
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.messages import PartWork, RowWork
from cluster.reports import report
from cluster.work import GenerateWork
from sdxl_core.contract.errors import StoreError
from sdxl_core.contract.images import IMAGE_COLUMN, Made, failed_row, made_row, results_table
from sdxl_core.contract.part_requests import resolve_part
from sdxl_core.storage.part_files import delete_replaced
from sdxl_core.storage.parts import (
    PartRecord,
    commit_part,
    read_part_record,
    record_path,
)
from sdxl_core.storage.sinks import read_part_images, read_part_table, write_part_files
from sdxl_core.storage.stores import Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Committed:
    """A part that is in, and how many of its rows were made or tried just now."""

    record: PartRecord
    num_rows_now: int


def rows_made_before(work: GenerateWork, store: Store, part: int) -> frozenset[int]:
    """Input rows of ``part`` that stay as they are: those that are fine in its commit record."""
    if not work.retry_failed or not store.exists(record_path(part)):
        return frozenset()
    table = read_part_table(store, read_part_record(store, part), ["input_row", "status"])
    rows = table.to_pylist()
    return frozenset(row["input_row"] for row in rows if row["status"] == "ok")


def commit_images(
    work: GenerateWork, store: Store, part: PartWork, images: dict[int, bytes]
) -> Committed:
    """Writes the files of a part, then its commit record.

    If the part is committed already (it was opened again for its failed rows, or a worker died just
    after the commit), rows that are fine in its record stay as they are, and so does every file
    that the record names, until the new record is put.

    Args:
        work: The run.
        store: Of the output.
        part: Its rows, done or failed; of a part that was opened again, those that were tried.
        images: Encoded images by input row.

    Returns:
        The record, as committed.
    """
    place = work.parts.part(part.part)
    fresh = _fresh_rows(work, part)
    old = read_part_record(store, part.part) if store.exists(record_path(part.part)) else None
    kept, images = _with_kept(work, store, old, images)
    fresh = [row for row in fresh if row["input_row"] not in kept]
    if old is not None and _says_nothing_new(store, old, fresh):
        return Committed(record=old, num_rows_now=len(fresh))
    rows = [*fresh, *kept.values()]
    table = results_table(rows, part.table, first_row=place.global_first_row)
    files = write_part_files(
        store,
        part.part,
        table,
        [images.get(place.global_first_row + index) for index in range(table.num_rows)],
        output_format=work.output_format,
        image_format=work.image_format,
        committed=old,
    )
    seconds = sum(sum(row.seconds.values()) for row in part.rows)
    record = PartRecord(
        part=part.part,
        num_rows=table.num_rows,
        num_by_status=_count(table.column("status")),
        num_by_reason=_count(table.column("reason")),
        files=tuple(files),
        seconds=round(seconds + (old.seconds if old else 0.0), 6),
        extra=old.extra if old else {"num_texts": len(part.texts)},
    )
    commit_part(store, record, reopened=old is not None)
    if old is not None:
        delete_replaced(store, old, record)
    return Committed(record=record, num_rows_now=len(fresh))


def part_report(committed: Committed) -> pa.Table:
    """What the driver gets of a part that is committed."""
    record = committed.record
    counts = {
        "num_rows": record.num_rows,
        "num_rows_now": committed.num_rows_now,
        "num_by_status": record.num_by_status,
        "num_by_reason": record.num_by_reason,
    }
    return report(record.part, counts)


def _fresh_rows(work: GenerateWork, part: PartWork) -> list[dict[str, Any]]:
    place = work.parts.part(part.part)
    resolved = resolve_part(
        part.table,
        first_row=place.global_first_row,
        defaults=work.defaults,
        run_seed=work.run_seed,
        duplicates=work.duplicates.get(part.part),
        has_refiner=work.refiner is not None,
    )
    return resolved.failed + [_fresh_row(work, row) for row in part.rows]


def _fresh_row(work: GenerateWork, row: RowWork) -> dict[str, Any]:
    made = Made(
        model_digest=work.model_digest,
        numerics=work.numerics_name,
        refiner_digest=work.refiner_digest if row.request.refiner else None,
        num_slots=row.num_slots or None,
        num_tokens_cut=row.num_tokens_cut,
        seconds=row.seconds,
    )
    if row.error is not None:
        return failed_row(row.request, row.error, input_row=row.input_row, made=made)
    values = made_row(row.request, made, input_row=row.input_row)
    if row.num_tokens_cut:
        values["detail"] = (
            f"the prompt was cut: {row.num_tokens_cut} tokens are beyond the 77 that the text "
            "encoders read"
        )
    return values


def _with_kept(
    work: GenerateWork,
    store: Store,
    old: PartRecord | None,
    images: dict[int, bytes],
) -> tuple[dict[int, dict[str, Any]], dict[int, bytes]]:
    """Rows that stay as the part's record has them, by input row; and the images to write."""
    if old is None:
        return {}, images
    table = read_part_table(store, old)
    made = table.filter(pc.equal(table.column("status"), "ok"))
    kept = {row["input_row"]: {IMAGE_COLUMN: None} | row for row in made.to_pylist()}
    # In the other formats an image stays where it is.
    stored = read_part_images(store, made) if work.output_format == "parquet" else {}
    if work.output_format == "parquet" and stored.keys() != kept.keys():
        raise StoreError(
            f"{store.url}: the table of part {old.part} lacks images of rows that were made; "
            "`sdxl fsck` tells what is damaged, and a part whose record in _parts is deleted is "
            "made anew by the next run",
            retryable=False,
        )
    return kept, {row: image for row, image in images.items() if row not in kept} | stored


def _says_nothing_new(store: Store, old: PartRecord, fresh: list[dict[str, Any]]) -> bool:
    """Whether all rows that were tried have failed as they did before."""
    names = ["input_row", "status", "reason", "detail"]
    before = {row["input_row"]: row for row in read_part_table(store, old, names).to_pylist()}
    return all({name: row[name] for name in names} == before[row["input_row"]] for row in fresh)


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    counts = column.drop_null().value_counts().to_pylist()
    return {item["values"]: item["counts"] for item in counts}
