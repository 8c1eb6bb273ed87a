"""A run's work without its networks: parts that are committed with failed rows, and tried again."""

from pathlib import Path
from typing import Any

from cluster.messages import PartWork, RowWork
from cluster.preparation import read_table_plan
from cluster.work import GenerateWork
from cluster.writing import commit_images, rows_made_before
from sdxl_core.contract.errors import RowError
from sdxl_core.contract.part_requests import resolve_part
from sdxl_core.contract.reasons import Reason
from sdxl_core.storage.parts import DatasetInfo, write_run_files
from sdxl_core.storage.sinks import OutputFormat
from sdxl_core.storage.stores import Store, open_store
from sdxl_core.storage.tables import read_part
from tests.flow import kit

# Of the table's rows, the last one cannot be made: its height is no multiple of 8.
NUM_GOOD, INVALID = 5, 5
FAILED_FIRST = (1, 3, 4)


def write_prompts(folder: Path) -> str:
    """The table."""
    rows = kit.plain_rows(NUM_GOOD + 1, note="n")
    rows[INVALID]["height"] = 65
    return kit.write_csv(folder / "p.csv", rows)


def make_work(prompts: str, out: Path, output_format: OutputFormat) -> GenerateWork:
    """What workers of a retry would know."""
    return GenerateWork(
        out=str(out),
        parts=read_table_plan(prompts, 10),
        duplicates={},
        defaults=kit.DEFAULTS,
        run_seed=0,
        base="base",
        refiner=None,
        variant=None,
        model_digest="digest",
        refiner_digest=None,
        spacing=None,
        dtype="float32",
        vae_dtype="float32",
        numerics="exact",
        numerics_name="exact:cpu:float32:vae-float32:threads-1",
        slots={},
        device="cpu",
        num_threads=1,
        output_format=output_format,
        image_format="png",
        retry_failed=True,
    )


def image(row: int) -> bytes:
    """Stands for an encoded image; nothing here looks into it."""
    return b"picture of row %d" % row


def commit(
    work: GenerateWork, store: Any, *, failed: tuple[int, ...] = (), detail: str = "broke"
) -> int:
    """What the pools do to the part: all rows that are not made yet, of which some fail.

    Returns the number of rows that were tried.
    """
    table = read_part(work.parts.part(0))
    requests = resolve_part(table, first_row=0, defaults=work.defaults, run_seed=0).requests
    made = rows_made_before(work, store, 0)
    rows = [
        RowWork(
            input_row=row,
            request=request,
            num_slots=4,
            seconds={"denoise": 1.5},
            error=RowError(Reason.INTERNAL_ERROR, detail) if row in failed else None,
        )
        for row, request in requests
        if row not in made
    ]
    images = {row.input_row: image(row.input_row) for row in rows if row.error is None}
    return commit_images(work, store, PartWork(part=0, table=table, rows=rows), images).num_rows_now


def begun(prompts: str, out: Path, output_format: OutputFormat) -> tuple[GenerateWork, Store]:
    """An output with one part that is committed with failed rows."""
    work, store = make_work(prompts, out, output_format), open_store(out)
    write_run_files(store, "", DatasetInfo(name="images", version=1, num_parts=1, num_rows=6))
    assert commit(work, store, failed=FAILED_FIRST) == NUM_GOOD + 1
    return work, store
