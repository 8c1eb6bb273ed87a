"""What the driver gets of each part: a row with a few counts. Workers make it; it holds no data."""

import json
from typing import Any

import pyarrow as pa

REPORT_SCHEMA = pa.schema([("part", pa.int64()), ("fatal", pa.string()), ("record", pa.string())])


def report(part: int, counts: dict[str, Any]) -> pa.Table:
    """What the driver gets of a part that is done."""
    rows = {"part": [part], "fatal": [""], "record": [json.dumps(counts)]}
    return pa.table(rows, schema=REPORT_SCHEMA)


def fatal_report(part: int, fatal: str) -> pa.Table:
    """What the driver gets when the job cannot go on."""
    return pa.table({"part": [part], "fatal": [fatal], "record": ["{}"]}, schema=REPORT_SCHEMA)
