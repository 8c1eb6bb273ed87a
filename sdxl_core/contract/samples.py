"""The samples dataset: what becomes of every row of an image-text source.

A source row is a ``RawSample``. It becomes one or several ``Sample`` (several with ``--crops``) or
one ``Rejection`` that says why not, nothing else: source rows = rows with samples + rejected rows.
A row is told apart by ``source_slice`` and ``row_index``, its place in the source.

Sizes are pixels, heights before widths. ``original_*`` is the picture as it was before any resize,
upright; ``crop_*`` is the place of the sample in the resized picture; ``target_*`` is the bucket.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from sdxl_core.contract.reject_reasons import RejectReason

__all__ = [
    "MAX_DETAIL_CHARACTERS",
    "SAMPLES_SCHEMA_NAME",
    "SAMPLES_SCHEMA_VERSION",
    "SAMPLE_IMAGE_COLUMN",
    "RawSample",
    "RejectReason",
    "Rejection",
    "Sample",
    "encodable",
    "reject",
    "rejected_schema",
    "rejected_table",
    "samples_schema",
    "staged_schema",
    "staged_table",
]

SAMPLES_SCHEMA_NAME: Final = "samples"
SAMPLES_SCHEMA_VERSION: Final = 1
SAMPLE_IMAGE_COLUMN: Final = "image"
MAX_DETAIL_CHARACTERS: Final = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawSample:
    """One row of a source, as it was read and before anybody looked at the picture.

    Args:
        key: the row's name in the source; it becomes the sample's id.
        row_index: place of the row in its slice, from 0.
        source: where it was read: URL of the file, ``#`` and the member or row inside of it.
        image: the encoded image file; None if there is none.
        captions: all captions, in the order of the source.
        metadata: the other keys of the row, as JSON knows them.
        notes: what is odd about how it was read, such as ``caption_latin1``.
        problem: why no sample can come of it; such a row becomes a rejection, it never vanishes.
    """

    key: str
    row_index: int
    source: str
    image: bytes | None
    captions: tuple[str, ...]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problem: tuple[RejectReason, str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One row of the samples dataset, its picture encoded at bucket size.

    Args:
        id: the source row's key; ``KEY#0``, ``KEY#1``, … for several crops of one row.
        row_index: place of the source row in its slice, from 0.
        captions: all captions, at least one.
        image: the encoded picture of ``(target_height, target_width)`` pixels.
        original_height: height before any resize, upright, pixels.
        original_width: width before any resize, upright, pixels.
        crop_top: first row of the crop in the resized picture, pixels, >= 0.
        crop_left: first column of the crop in the resized picture, pixels, >= 0.
        target_height: height of the bucket, pixels.
        target_width: width of the bucket, pixels.
        flip: was the picture mirrored left to right.
        source: of the raw sample.
        content_sha256: of the source's image file, lower-case hex.
        upscale: resized size divided by original size, > 0; above 1 the picture was enlarged.
        phash: 64-bit perceptual hash, in ``[0, 2**64)``.
        aesthetic: the score of the source, finite, or None.
        notes: what was done to the picture or is odd about it, such as ``alpha_over_white``.
        metadata: the source's other keys, one JSON object.
    """

    id: str
    row_index: int
    captions: tuple[str, ...]
    image: bytes
    original_height: int
    original_width: int
    crop_top: int
    crop_left: int
    target_height: int
    target_width: int
    flip: bool
    source: str
    content_sha256: str
    upscale: float
    phash: int
    aesthetic: float | None = None
    notes: tuple[str, ...] = ()
    metadata: str = "{}"

    @property
    def bucket(self) -> tuple[int, int]:
        """Height and width of the bucket, pixels."""
        return self.target_height, self.target_width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
    """One source row that gave no sample. ``detail`` says what was found and what was expected."""

    id: str
    row_index: int
    source: str
    reason: RejectReason
    detail: str
    original_height: int | None = None
    original_width: int | None = None
    captions: tuple[str, ...] = ()


_ROW_FIELDS: Final = (
    pa.field("source_slice", pa.int32(), nullable=False),
    pa.field("row_index", pa.int64(), nullable=False),
)
_MOMENTS_FIELDS: Final = (
    pa.field("moments", pa.binary()),  # mean, then log-variance: (2 * channels, h, w), C order
    pa.field("moments_dtype", pa.string()),
    pa.field("moments_shape", pa.list_(pa.int32())),
)
_TEXT_FIELDS: Final = (
    pa.field("text_states", pa.binary()),  # (captions, tokens, width), C order
    pa.field("text_pooled", pa.binary()),  # (captions, width), C order
    pa.field("text_dtype", pa.string()),
    pa.field("text_shape", pa.list_(pa.int32())),  # of text_states
)


def samples_schema(*, latents: bool = False, text: bool = False) -> pa.Schema:
    """The columns of one bucket's files.

    Args:
        latents: the VAE's moments in place of the picture.
        text: the text encoders' output for each caption as well.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("captions", pa.list_(pa.string()), nullable=False),
            *(_MOMENTS_FIELDS if latents else [pa.field(SAMPLE_IMAGE_COLUMN, pa.binary())]),
            *(_TEXT_FIELDS if text else []),
            *(
                pa.field(name, pa.int32(), nullable=False)
                for name in (
                    *("original_height", "original_width", "crop_top", "crop_left"),
                    *("target_height", "target_width"),
                )
            ),
            pa.field("flip", pa.bool_(), nullable=False),
            pa.field("aesthetic", pa.float32()),
            pa.field("source", pa.string(), nullable=False),
            pa.field("content_sha256", pa.string(), nullable=False),
            pa.field("upscale", pa.float32(), nullable=False),
            pa.field("notes", pa.list_(pa.string()), nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            *_ROW_FIELDS,
        ]
    )


def staged_schema() -> pa.Schema:
    """The columns of a finished picture that waits for its place: a sample and its hash."""
    return samples_schema().append(pa.field("phash", pa.uint64(), nullable=False))


def rejected_schema() -> pa.Schema:
    """The columns of the rejected rows."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("detail", pa.string(), nullable=False),
            pa.field("original_height", pa.int64()),
            pa.field("original_width", pa.int64()),
            pa.field("captions", pa.list_(pa.string()), nullable=False),
            *_ROW_FIELDS,
        ]
    )


def reject(
    raw: RawSample,
    reason: RejectReason,
    detail: str,
    *,
    original_size: tuple[int, int] | None = None,
) -> Rejection:
    """The rejection of ``raw``; ``original_size`` is (height, width) in pixels where known."""
    height, width = original_size or (None, None)
    return Rejection(
        id=raw.key,
        row_index=raw.row_index,
        source=raw.source,
        reason=reason,
        detail=detail,
        original_height=height,
        original_width=width,
        captions=raw.captions,
    )


def staged_table(samples: Iterable[Sample], *, source_slice: int) -> pa.Table:
    """``samples``, all of one slice of the source, as a table of ``staged_schema``."""
    return _table(samples, staged_schema(), source_slice)


def rejected_table(rejections: Iterable[Rejection], *, source_slice: int) -> pa.Table:
    """``rejections``, all of one slice of the source, as a table of ``rejected_schema``."""
    return _table(rejections, rejected_schema(), source_slice)


def _table(rows: Iterable[Any], schema: pa.Schema, source_slice: int) -> pa.Table:
    rows = list(rows)
    columns = [
        _column([getattr(row, field.name) for row in rows], field)
        if field.name != "source_slice"
        else pa.array([source_slice] * len(rows), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(values: Sequence[Any], field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if pa.types.is_string(field.type):
        cut = MAX_DETAIL_CHARACTERS if field.name == "detail" else None
        values = [encodable(value[:cut]) for value in values]
    elif pa.types.is_list(field.type):
        values = [[encodable(text) for text in texts] for texts in values]
    return pa.array(values, field.type)


def encodable(text: str) -> str:
    """``text`` as it is, but lone surrogates, which UTF-8 does not know, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()
