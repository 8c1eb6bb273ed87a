"""How many rows a slice of a table has, counted without the code that reads them.

Parquet: from the footer. JSONL: lines that are not blank. CSV: records by the rules of quoting
(RFC 4180), followed here with patterns where the reader uses Python's ``csv``; a record that breaks
them ends with its first line.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_core.contract.errors import SchemaError
from sdxl_core.storage.text_lines import BYTE_ORDER_MARK, MAX_RECORD_BYTES

_PLAIN_FIELD: Final = re.compile(rb'[^",\r\n][^,\r\n]*|')
_IN_QUOTES: Final = re.compile(rb'[^"]*(?:""[^"]*)*')
_LINE_END: Final = re.compile(rb"\r*\n?\Z")


def count_row_groups(file: BinaryIO, *, first: int, num_groups: int, url: str) -> int:
    """Rows of some row groups, by the footer.

    Raises:
        SchemaError: if it is not parquet, or has no such row groups.
    """
    try:
        metadata = pq.read_metadata(file)
        return sum(metadata.row_group(n).num_rows for n in range(first, first + num_groups))
    except (pa.ArrowException, OSError, IndexError) as error:
        raise SchemaError(f"{url}: its footer is not what was planned: {error}") from error


def count_json_lines(file: BinaryIO, *, start: int, stop: int) -> int:
    """Lines that are not blank between two bytes."""
    return sum(
        bool((line.removeprefix(BYTE_ORDER_MARK) if at_start else line).strip())
        for line, at_start in _lines(file, start, stop)
    )


def count_csv_records(file: BinaryIO, *, start: int, stop: int) -> int:
    """Records between two bytes; ``start`` is after the header, and both begin a record."""
    num_records = 0
    lines = _lines(file, start, stop)
    waiting: list[bytes] = []  # lines of a record that turned out to be broken, but its first
    while (first := _next_line(waiting, lines)) is not None:
        if not first.strip(b"\r\n"):
            continue
        num_records += 1
        taken: list[bytes] = []
        num_bytes = len(first)
        state = _state_after(first, in_quotes=False)
        while state is True:
            line = _next_line(waiting, lines)
            if line is None:
                state = None
                break
            taken.append(line)
            num_bytes += len(line)
            too_long = num_bytes > MAX_RECORD_BYTES
            state = None if too_long else _state_after(line, in_quotes=True)
        if state is None:
            waiting[:0] = taken
    return num_records


def _next_line(waiting: list[bytes], lines: Iterator[tuple[bytes, bool]]) -> bytes | None:
    if waiting:
        return waiting.pop(0)
    line, at_start = next(lines, (None, False))
    return line.removeprefix(BYTE_ORDER_MARK) if line is not None and at_start else line


def _state_after(line: bytes, *, in_quotes: bool) -> bool | None:
    """Is the record still inside of quotes after this line; None if it broke the rules."""
    position = 0
    while True:
        if not in_quotes and line[position : position + 1] == b'"':
            in_quotes, position = True, position + 1
        if in_quotes:
            match = _IN_QUOTES.match(line, position)
            assert match is not None
            position = match.end()
            if position == len(line):
                return True
            in_quotes, position = False, position + 1
        else:
            match = _PLAIN_FIELD.match(line, position)
            assert match is not None
            position = match.end()
        if _LINE_END.match(line, position):
            return False
        if line[position : position + 1] != b",":
            return None
        position += 1


def _lines(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, bool]]:
    """Physical lines between two bytes, and whether each is the first one of the file."""
    file.seek(start)
    position = start
    while position < stop and (line := file.readline()):
        yield line, position == 0
        position += len(line)
