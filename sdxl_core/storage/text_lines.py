"""Records of CSV and JSONL files, one at a time, with the place where each one starts.

A record is what becomes one row: a line of JSONL, or the line or lines of CSV that quotes hold
together. Blank lines are not records. One bad record stays one record: it carries its problem
instead of its values, and the records after it are unharmed. The same code cuts a file when its
rows are counted and when they are read, so both always agree.
"""

import csv
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

MAX_RECORD_BYTES = 16 << 20
READ_BUFFER_BYTES = 8 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """One record: where it starts, and its fields, its object, or its problem.

    ``offset`` counts bytes and ``line`` counts lines from 1, both from the start of the file.
    ``value`` is a list of raw fields (CSV), a dict (JSONL), or None if there is a ``problem``.
    """

    offset: int
    line: int
    value: Any
    problem: str | None


class Line(NamedTuple):
    """A physical line with its end. ``num_bytes`` also counts what was too long to keep."""

    text: bytes
    num_bytes: int


class Lines:
    """The physical lines of a file, with their places; lines can be given back.

    Args:
        file: positioned at the start of a record.
        offset: that position.
        line: number of the first line there, from 1.
        digest: takes in every byte that is read, if given.
    """

    def __init__(
        self, file: BinaryIO, *, offset: int = 0, line: int = 1, digest: Any | None = None
    ) -> None:
        self._file = file
        self._digest = digest
        self._given_back: list[Line] = []
        self.offset = offset
        self.line = line

    def take(self) -> Line | None:
        """The next line, None at the end of the file.

        Of a line longer than ``MAX_RECORD_BYTES`` only the first bytes are kept, one more than
        allowed: memory stays bounded whatever the file is.
        """
        line = self._given_back.pop() if self._given_back else self._read()
        if line is not None:
            self.offset += line.num_bytes
            self.line += 1
        return line

    def give_back(self, lines: list[Line]) -> None:
        """Makes ``lines`` the next ones again, in their order."""
        self._given_back.extend(reversed(lines))
        self.offset -= sum(line.num_bytes for line in lines)
        self.line -= len(lines)

    def _read(self) -> Line | None:
        text = last = self._read_some()
        num_bytes = len(text)
        while len(last) > MAX_RECORD_BYTES and not last.endswith(b"\n"):
            last = self._read_some()
            num_bytes += len(last)
        return Line(text, num_bytes) if text else None

    def _read_some(self) -> bytes:
        text = self._file.readline(MAX_RECORD_BYTES + 1)
        if self._digest is not None:
            self._digest.update(text)
        return text


def json_records(lines: Lines) -> Iterator[Record]:
    """Every line that is not blank, as a JSON object."""
    while True:
        offset, number = lines.offset, lines.line
        line = lines.take()
        if line is None:
            return
        text = line.text if offset else line.text.removeprefix(BYTE_ORDER_MARK)
        if text.strip():
            value, problem = _json_object(text)
            yield Record(offset, number, value, problem)


def csv_records(lines: Lines) -> Iterator[Record]:
    """Every record that is not blank, as raw fields: text in which each character is one byte.

    Fields are cut before they are decoded, so a wrong byte harms one field (see ``decode_field``).
    A record that breaks the rules of quoting (RFC 4180) ends with its first line: an opening quote
    that nobody closes costs one row and not the rest of the file.
    """
    _allow_large_fields()
    while True:
        offset, number = lines.offset, lines.line
        taken: list[Line] = []
        reader = csv.reader(_latin_lines(lines, taken), strict=True)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.give_back(taken[1:])
            yield Record(offset, number, None, f"broken CSV record: {error}")
            continue
        if not fields:  # a blank line
            continue
        has_nul = any(b"\0" in line.text for line in taken)
        problem = "it holds a NUL byte" if has_nul else None
        yield Record(offset, number, None if has_nul else fields, problem)


def decode_field(raw: str) -> str:
    """The text of a raw field of ``csv_records``.

    Raises:
        UnicodeDecodeError: if it is not UTF-8.
    """
    return raw if raw.isascii() else raw.encode("latin-1").decode("utf-8")


def _latin_lines(lines: Lines, taken: list[Line]) -> Iterator[str]:
    """Lines for ``csv.reader``; each is remembered in ``taken``. Latin-1 maps bytes one to one."""
    num_bytes = 0
    while True:
        is_first = lines.offset == 0
        line = lines.take()
        if line is None:
            return
        taken.append(line)
        num_bytes += line.num_bytes
        if num_bytes > MAX_RECORD_BYTES:
            raise csv.Error(f"longer than {MAX_RECORD_BYTES >> 20} MiB; is a quote left open?")
        text = line.text.removeprefix(BYTE_ORDER_MARK) if is_first else line.text
        yield text.decode("latin-1")


def _json_object(text: bytes) -> tuple[dict[str, Any] | None, str | None]:
    if len(text) > MAX_RECORD_BYTES:
        return None, f"the line is longer than {MAX_RECORD_BYTES >> 20} MiB"
    try:
        value = json.loads(text.decode("utf-8"))
        if b"\\u" in text:  # the only way to a lone surrogate, which is no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        return None, f"not UTF-8: {error.reason} at byte {error.start} of the line"
    except UnicodeEncodeError:
        return None, "it holds half of a surrogate pair, which is not Unicode text"
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} at character {error.pos + 1} of the line"
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of 5,000 digits
        return None, f"not usable JSON: {error}"
    if not isinstance(value, dict):
        return None, f"expected a JSON object, found {type(value).__name__}"
    return value, None


def _allow_large_fields() -> None:
    # A setting of the whole process, and only ever raised: prompts of a megabyte are rows too.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES + 1))
