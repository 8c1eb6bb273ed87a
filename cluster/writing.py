"""From finished rows to a committed part, and the few numbers about it that the driver gets."""

import json
from typing import Any

import pyarrow as pa

from cluster.messages import PartWork, RowWork
from cluster.work import GenerateWork
from sdxl_core.contract.images import IMAGE_COLUMN, Made, failed_row, made_row, results_table
from sdxl_core.contract.part_requests import resolve_part
from sdxl_core.storage.parts import (
    PartRecord,
    commit_part,
    read_part_record,
    record_path,
)
from sdxl_core.storage.sinks import read_part_images, read_part_table, write_part_files
from sdxl_core.storage.stores import Store

REPORT_SCHEMA = pa.schema([("part", pa.int64()), ("fatal", pa.string()), ("record", pa.string())])


def commit_images(
    work: GenerateWork, store: Store, part: PartWork, images: dict[int, bytes]
) -> PartRecord:
    """Writes the files of a part, then its commit record.

    Args:
        work: The run.
        store: Of the output.
        part: Its rows, done or failed.
        images: Encoded images by input row.

    Returns:
        The record, as committed.
    """
    place = work.parts.part(part.part)
    kept_rows, kept_images = _kept(work, store, part.part)
    fresh = _fresh_rows(work, part)
    rows = [row for row in fresh if row["input_row"] not in kept_rows] + list(kept_rows.values())
    table = results_table(rows, part.table, first_row=place.global_first_row)
    by_row = kept_images | images
    ordered = [by_row.get(place.global_first_row + index) for index in range(table.num_rows)]
    if kept_rows:
        # From here to the new record the part counts as not done, so that a kill in between
        # makes it again instead of leaving a record that its files contradict.
        store.delete(record_path(part.part))
    files = write_part_files(
        store,
        part.part,
        table,
        ordered,
        output_format=work.output_format,
        image_format=work.image_format,
    )
    record = PartRecord(
        part=part.part,
        num_rows=table.num_rows,
        num_by_status=_count(table.column("status")),
        num_by_reason=_count(table.column("reason")),
        files=tuple(files),
        seconds=round(sum(sum(row.seconds.values()) for row in part.rows), 6),
        extra={"num_texts": len(part.texts)},
    )
    commit_part(store, record)
    return record


def part_report(record: PartRecord) -> pa.Table:
    """What the driver gets of a part that is committed."""
    counts = {
        "num_rows": record.num_rows,
        "num_by_status": record.num_by_status,
        "num_by_reason": record.num_by_reason,
    }
    return pa.table(
        {"part": [record.part], "fatal": [""], "record": [json.dumps(counts)]}, schema=REPORT_SCHEMA
    )


def failed_report(part: int, fatal: str) -> pa.Table:
    """What the driver gets when the job cannot go on."""
    return pa.table({"part": [part], "fatal": [fatal], "record": ["{}"]}, schema=REPORT_SCHEMA)


def _fresh_rows(work: GenerateWork, part: PartWork) -> list[dict[str, Any]]:
    place = work.parts.part(part.part)
    resolved = resolve_part(
        part.table,
        first_row=place.global_first_row,
        defaults=work.defaults,
        run_seed=work.run_seed,
        duplicates=work.duplicates.get(part.part),
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


def _kept(
    work: GenerateWork, store: Store, part: int
) -> tuple[dict[int, dict[str, Any]], dict[int, bytes]]:
    """Rows and images of an earlier run of this part that stay as they are."""
    if not work.retry_failed or not store.exists(record_path(part)):
        return {}, {}
    record = read_part_record(store, part)
    table = read_part_table(store, record)
    images = read_part_images(store, table)
    rows = {}
    for row in table.to_pylist():
        if row["status"] == "ok":
            rows[row["input_row"]] = {IMAGE_COLUMN: None} | row
    return rows, {row: image for row, image in images.items() if row in rows}


def _count(column: pa.ChunkedArray) -> dict[str, int]:
    counts = column.drop_null().value_counts().to_pylist()
    return {item["values"]: item["counts"] for item in counts}
