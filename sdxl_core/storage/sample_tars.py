"""Samples in a tar as webdataset knows it: KEY.jpg, KEY.txt and KEY.json of each sample.

KEY is the sample's id as a file name. KEY.txt has a caption per line, for readers that know no
better; KEY.json has every column but the bytes, so a tar gives back exactly what was written. A
column of bytes other than the picture, such as ``moments``, is KEY.moments.bin.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from sdxl_core.contract.samples import SAMPLE_IMAGE_COLUMN, samples_schema
from sdxl_core.storage.file_names import file_name_of_id

_NUM_ROWS_AT_ONCE = 64
_SUFFIX_OF_START = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}


def distinct_keys(ids: Iterable[str]) -> list[str]:
    """A file name for each id, all different; an id that is there again gets a number."""
    keys: list[str] = []
    num_times: dict[str, int] = {}
    for sample_id in ids:
        key = file_name_of_id(sample_id)
        number = num_times[key] = num_times.get(key, 0) + 1
        # "=n" begins no escape of ``file_name_of_id``, hence this is no other id's name.
        keys.append(key if number == 1 else f"{key}=n{number}")
    return keys


def tar_bytes(samples: pa.Table, keys: Sequence[str]) -> bytes:
    """A tar with the rows of ``samples`` under their ``keys``; columns of ``samples_schema``."""
    from webdataset import TarWriter  # imports torch's data loading

    binary = [field.name for field in samples.schema if pa.types.is_binary(field.type)]
    buffer = io.BytesIO()
    remaining = iter(keys)
    with TarWriter(buffer, encoder=False, mtime=0) as tar:
        for batch in samples.to_batches(max_chunksize=_NUM_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                members = {_suffix(name, row[name]): row.pop(name) for name in binary}
                captions = "\n".join(" ".join(caption.split()) for caption in row["captions"])
                members["txt"] = captions.encode()
                members["json"] = json.dumps(row, ensure_ascii=False).encode()
                tar.write({"__key__": next(remaining), **members})
    return buffer.getvalue()


def read_tar_table(file: BinaryIO, *, max_rows: int | None = None) -> pa.Table:
    """The table that ``tar_bytes`` wrote, or its first rows, with ``samples_schema``.

    Raises:
        tarfile.TarError, OSError, ValueError, LookupError: it is damaged, or another's tar.
    """
    rows: dict[str, dict[str, Any]] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                raise ValueError(f"the member {member.name} is no file")
            key, _, suffix = member.name.partition(".")
            if key not in rows and len(rows) == max_rows:
                break
            row = rows.setdefault(key, {})
            if suffix == "json":
                row |= json.loads(content.read())
            elif suffix.endswith(".bin"):
                row[suffix.removesuffix(".bin")] = content.read()
            elif suffix != "txt":
                row[SAMPLE_IMAGE_COLUMN] = content.read()
    names = set(next(iter(rows.values()), ()))
    schema = samples_schema(latents="moments" in names, text="text_states" in names)
    columns = [pa.array([row[f.name] for row in rows.values()], f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _suffix(column: str, data: bytes) -> str:
    if column == SAMPLE_IMAGE_COLUMN:
        return _SUFFIX_OF_START[data[:2]]
    return f"{column}.bin"
