"""Reads and writes safetensors files one tensor at a time, in bounded memory, from any store.

The safetensors library maps a whole local file into memory; a model then counts twice while it is
loaded, and a file on S3 cannot be read at all. The format is short enough to speak it directly:
8 bytes with the header's length, a JSON header, the tensors' bytes end to end. Nothing in such a
file can run code, and this reader checks every offset against the file before it trusts it.

Format: https://github.com/huggingface/safetensors#format
"""

import dataclasses
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import torch

from sdxl_core.contract.errors import WeightsError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# The library's own limit, and what keeps a damaged length from asking for terabytes.
_MAX_HEADER_BYTES = 100_000_000
_ALIGNMENT_BYTES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies in its file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What a file holds. ``tensors`` are in the order of their bytes."""

    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorToWrite:
    """One tensor of a new file; ``read`` is called when its turn comes and may convert."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def read_header(file: BinaryIO, *, url: str, num_file_bytes: int) -> Header:
    """Reads and checks the header of a safetensors file.

    Args:
        file: at its start.
        url: for the error messages.
        num_file_bytes: the file's size.

    Raises:
        WeightsError: if it is not a safetensors file, or is damaged or cut short.
    """
    start = file.read(8)
    num_header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER_BYTES
    if num_header_bytes > min(_MAX_HEADER_BYTES, num_file_bytes - 8):
        kind = "a pickle or zip archive" if start[:2] in (b"PK", b"\x80\x02") else "unknown bytes"
        raise WeightsError(f"{url}: found {kind}, expected a safetensors file, whole")
    try:
        header: dict[str, Any] = json.loads(file.read(num_header_bytes))
        metadata = header.pop("__metadata__", {})
        tensors = [
            _stored_tensor(name, fields, data_start=8 + num_header_bytes)
            for name, fields in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{url}: the safetensors header cannot be read: {error!r}") from error
    tensors.sort(key=lambda tensor: (tensor.start, tensor.num_bytes))
    _check_bounds(tensors, url=url, first=8 + num_header_bytes, last=num_file_bytes)
    return Header(tensors=tuple(tensors), metadata=metadata)


def read_tensor(file: BinaryIO, tensor: StoredTensor, *, url: str) -> torch.Tensor:
    """Reads one tensor into new memory on the CPU.

    Raises:
        WeightsError: if the file ends early.
    """
    # One byte at least: torch cannot view an empty buffer as another dtype.
    buffer = torch.empty(max(1, tensor.num_bytes), dtype=torch.uint8)
    view = buffer.numpy().data[: tensor.num_bytes]
    file.seek(tensor.start)
    filled = 0
    while filled < tensor.num_bytes:
        num_read = file.readinto(view[filled:])  # type: ignore[attr-defined]
        if not num_read:
            raise WeightsError(f"{url}: the file ends inside tensor {tensor.name!r}; copy it again")
        filled += num_read
    return buffer[: tensor.num_bytes].view(tensor.dtype).view(tensor.shape)


def write_safetensors(
    file: BinaryIO, tensors: Sequence[TensorToWrite], *, metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file; the same tensors and metadata give the same bytes.

    Tensors are ordered by size of their dtype, largest first, then by name, as the library does, so
    that every one is aligned.

    Args:
        file: open for writing, at its start.
        tensors: read one at a time, each in its declared dtype and shape.
        metadata: goes into the header, in this order.
    """
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    stop = 0
    for tensor in ordered:
        start, stop = stop, stop + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in ordered:
        file.write(tensor_bytes(tensor.read()).numpy().data)


def tensor_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the bytes of ``tensor`` as it would be stored: uint8, on the CPU, in C order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _stored_tensor(name: str, fields: Mapping[str, Any], *, data_start: int) -> StoredTensor:
    start, stop = fields["data_offsets"]
    dtype = DTYPES[fields["dtype"]]
    shape = tuple(int(size) for size in fields["shape"])
    if min(shape, default=0) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} does not fill its bytes")
    return StoredTensor(
        name=name, dtype=dtype, shape=shape, start=data_start + start, num_bytes=stop - start
    )


def _check_bounds(tensors: Sequence[StoredTensor], *, url: str, first: int, last: int) -> None:
    """Tensors must fill the file without gaps or overlap, as the format asks."""
    position = first
    for tensor in tensors:
        if tensor.start != position:
            raise WeightsError(f"{url}: tensor {tensor.name!r} does not follow the one before it")
        position += tensor.num_bytes
    if position != last:
        raise WeightsError(
            f"{url}: found {last:,} bytes, expected {position:,} by its header; copy it again"
        )
