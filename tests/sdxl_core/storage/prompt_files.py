"""Writes small prompt tables in each format, and reads them whole through their parts."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.storage.tables import find_table_files, plan_parts, read_part


def read_all(url: str | Path, rows_per_part: int = 3) -> list[dict[str, Any]]:
    plan = plan_parts(find_table_files(str(url)), rows_per_part)
    return [row for k in range(plan.num_parts) for row in read_part(plan.part(k)).to_pylist()]


def prompts_of(rows: Sequence[dict[str, Any]]) -> list[str | None]:
    return [row["prompt"] for row in rows]


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=4)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
