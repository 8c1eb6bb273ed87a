"""The reader and the writer against the safetensors library, and against damaged files."""

import io
import json
import struct

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.safetensors_file import (
    TensorToWrite,
    read_header,
    read_tensor,
    tensor_bytes,
    write_safetensors,
)

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@st.composite
def named_tensors(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5, unique=True))
    names = [name for name in names if name != "__metadata__"]
    tensors = {}
    for name in names:
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        dtype = draw(st.sampled_from([*FLOATS, torch.int64, torch.uint8]))
        tensors[name] = (torch.randn(shape) * 10).to(dtype)
    return tensors


def written(tensors, metadata=None) -> bytes:
    file = io.BytesIO()
    to_write = [
        TensorToWrite(name=n, dtype=t.dtype, shape=tuple(t.shape), read=lambda t=t: t)
        for n, t in tensors.items()
    ]
    write_safetensors(file, to_write, metadata=metadata or {})
    return file.getvalue()


def opened(data: bytes):
    return read_header(io.BytesIO(data), url="x.safetensors", num_file_bytes=len(data))


def same_bits(first, second) -> bool:
    same_kind = first.dtype == second.dtype and first.shape == second.shape
    return same_kind and torch.equal(tensor_bytes(first), tensor_bytes(second))


@given(named_tensors())
def test_what_is_written_is_read_by_the_library_to_the_bit(tensors):
    read = safetensors.torch.load(written(tensors, {"format": "pt"}))
    assert sorted(read) == sorted(tensors)
    assert all(same_bits(read[name], tensor) for name, tensor in tensors.items())


@given(named_tensors())
def test_what_the_library_writes_is_read_to_the_bit(tensors):
    data = safetensors.torch.save(tensors, {"format": "pt"})
    header = opened(data)
    assert header.metadata == {"format": "pt"}
    assert sorted(t.name for t in header.tensors) == sorted(tensors)
    for stored in header.tensors:
        found = read_tensor(io.BytesIO(data), stored, url="x")
        assert same_bits(found, tensors[stored.name])


def test_bytes_are_those_that_the_library_writes():
    tensors = {name: torch.randn(3, 4).half() for name in ("b.weight", "a.bias", "c")}
    assert written(tensors, {"format": "pt"}) == safetensors.torch.save(tensors, {"format": "pt"})


def test_bytes_do_not_depend_on_the_order_of_the_tensors():
    tensors = {"a": torch.ones(2), "b": torch.ones(3).half(), "c": torch.ones(1)}
    assert written(tensors) == written(dict(reversed(tensors.items())))


def file_with(header: dict, num_data_bytes: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(num_data_bytes)


def entry(start: int, stop: int, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a safetensors file"),
        (b"PK\x03\x04" + bytes(100), "a pickle or zip archive"),
        (b"\x80\x02ctorch\n" + bytes(100), "a pickle or zip archive"),
        (struct.pack("<Q", 1 << 60) + b"{}", "expected a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "header cannot be read"),
        (struct.pack("<Q", 2) + b"{x", "header cannot be read"),
        (file_with({"a": {"dtype": "F32"}}, 8), "header cannot be read"),
        (file_with({"a": entry(0, 8, dtype="F99")}, 8), "header cannot be read"),
        (file_with({"a": entry(0, 8, shape=(3,))}, 8), "does not fill its bytes"),
        (file_with({"a": entry(0, 8, shape=(-1, -2))}, 8), "does not fill its bytes"),
        (file_with({"a": entry(0, 8)}, 4), "copy it again"),
        (file_with({"a": entry(0, 8)}, 12), "copy it again"),
        (file_with({"a": entry(4, 12)}, 12), "does not follow"),
        (file_with({"a": entry(0, 8), "b": entry(4, 12)}, 12), "does not follow"),
        (file_with({"a": entry(-8, 0)}, 8), "does not follow"),
    ],
)
def test_damaged_file_is_refused_with_its_name(data, message):
    with pytest.raises(WeightsError, match=message) as caught:
        opened(data)
    assert "x.safetensors" in str(caught.value)


def test_file_that_ends_while_it_is_read_is_refused():
    data = written({"a": torch.randn(100)})
    (stored,) = opened(data).tensors
    with pytest.raises(WeightsError, match="ends inside tensor 'a'"):
        read_tensor(io.BytesIO(data[:-1]), stored, url="x")
