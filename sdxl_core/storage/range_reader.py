"""A file over anything that can read a range of bytes."""

import io
from collections.abc import Callable
from typing import Any


class RangeReader(io.RawIOBase):
    """A read-only file over ``read(start, stop)``; to be wrapped in an ``io.BufferedReader``."""

    def __init__(self, read: Callable[[int, int], bytes], num_bytes: int) -> None:
        super().__init__()
        self._read = read
        self._num_bytes = num_bytes
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position; nothing is transferred."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readall(self) -> bytes:
        """The rest of the file in one request; the inherited method would make one per 8 KiB."""
        data = self._read(self._position, self._num_bytes)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fills ``buffer`` from the position on, in one request."""
        stop = min(self._num_bytes, self._position + len(buffer))
        data = self._read(self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
