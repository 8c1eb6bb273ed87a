"""What the files of one sample are by their names, and how they become a ``RawSample``.

Shared by archives and folders. Whether the bytes are a picture is decided later, from the bytes:
here a name only says which file is meant to be the picture.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from sdxl_core.contract.samples import RawSample, RejectReason

# In order of preference, should a sample have several. Formats that nobody decodes are in the list
# as well: their rows are rejected for what they are, not for having no image.
IMAGE_SUFFIXES: Final = (
    "jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "jpe", "jfif", "jxl", "avif",
    "heic", "ppm", "svg",
)  # fmt: skip
CAPTION_SUFFIXES: Final = ("txt", "caption")
METADATA_SUFFIX: Final = "json"
CLASS_SUFFIX: Final = "cls"
READ_SUFFIXES: Final = frozenset(
    {*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, METADATA_SUFFIX, CLASS_SUFFIX}
)

DEFAULT_CAPTION_KEY: Final = "caption"
MAX_IMAGE_BYTES: Final = 256 << 20
MAX_TEXT_BYTES: Final = 16 << 20

Problem = tuple[RejectReason, str]


def too_large(suffix: str, num_bytes: int) -> Problem | None:
    """Why a file of that size is not read into memory, if it is not."""
    limit = MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else MAX_TEXT_BYTES
    if num_bytes <= limit:
        return None
    found = f"its .{suffix} file has {num_bytes >> 20} MiB, expected at most {limit >> 20}"
    return RejectReason.UNSUPPORTED_FORMAT, found


def assemble(
    *,
    key: str,
    row_index: int,
    source: str,
    parts: Mapping[str, bytes],
    caption_key: str = DEFAULT_CAPTION_KEY,
    other_suffixes: tuple[str, ...] = (),
) -> RawSample:
    """The sample that the files of one key make, whatever state they are in.

    Args:
        key: name of the sample.
        row_index: its place in the slice.
        source: where it is from.
        parts: content by lower-case suffix (``jpg``, ``txt``, ``json``, …).
        caption_key: key of the JSON file whose text, or list of texts, is the caption if there is
            no caption file.
        other_suffixes: of files that were not read; told where there is no picture.
    """
    notes: list[str] = []
    metadata = _metadata(parts, notes)
    captions, caption_problem = _captions(parts, metadata, caption_key, notes)
    images = [suffix for suffix in IMAGE_SUFFIXES if suffix in parts]
    notes += [f"other_image_{suffix}" for suffix in images[1:]]
    image = parts[images[0]] if images else None
    return RawSample(
        key=key,
        row_index=row_index,
        source=source,
        image=image,
        captions=captions,
        metadata=metadata,
        notes=tuple(notes),
        problem=_image_problem(image, parts, other_suffixes) or caption_problem,
    )


def decode_text(data: bytes, notes: list[str], *, what: str) -> str:
    """Text in UTF-8, with or without a mark, in UTF-16 with one, or else in Latin-1, as noted."""
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            text = data.decode("utf-16")
            notes.append(f"{what}_utf16")
            return text
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        notes.append(f"{what}_latin1")
        return data.decode("latin-1")


def split_captions(text: str) -> tuple[str, ...]:
    """One caption per line; blank lines are none."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def captions_of(value: Any) -> tuple[tuple[str, ...], str | None]:
    """The captions in a cell or a JSON value: a text or a list of texts.

    Returns:
        The captions, blank ones left out, and None or what is wrong with the value.
    """
    texts = [value] if isinstance(value, str) else value
    if value is None:
        return (), None
    if not isinstance(texts, list | tuple):
        return (), f"expected text or a list of texts, found {type(value).__name__}"
    odd = [text for text in texts if text is not None and not isinstance(text, str)]
    if odd:
        return (), f"expected a list of texts, found {type(odd[0]).__name__} in it"
    return tuple(text.strip() for text in texts if text and text.strip()), None


def _image_problem(
    image: bytes | None, parts: Mapping[str, bytes], other_suffixes: tuple[str, ...]
) -> Problem | None:
    if image:
        return None
    if image is not None:
        return RejectReason.EMPTY_IMAGE, "the image file has 0 bytes"
    found = ", ".join(f".{suffix}" for suffix in (*parts, *other_suffixes)) or "nothing"
    if not parts:
        return RejectReason.UNKNOWN_MEMBER, f"found {found}, which belongs to no image or caption"
    return RejectReason.MISSING_IMAGE, f"found {found}, expected one of .jpg, .png, .webp, …"


def _captions(
    parts: Mapping[str, bytes], metadata: dict[str, Any], caption_key: str, notes: list[str]
) -> tuple[tuple[str, ...], Problem | None]:
    """Captions of the caption file, or else of the metadata, from which they are taken out."""
    of_metadata, wrong = captions_of(metadata.pop(caption_key, None))
    for suffix in CAPTION_SUFFIXES:
        if suffix in parts:
            captions = split_captions(decode_text(parts[suffix], notes, what="caption"))
            if captions:
                return captions, None
            wrong = f"the .{suffix} file is blank"
    if of_metadata:
        return of_metadata, None
    detail = wrong or f"found no .txt, no .caption and no {caption_key!r} in the .json"
    return (), (RejectReason.MISSING_CAPTION, detail)


def _metadata(parts: Mapping[str, bytes], notes: list[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    if METADATA_SUFFIX in parts:
        try:
            value = json.loads(decode_text(parts[METADATA_SUFFIX], notes, what="metadata"))
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            metadata = value
        else:
            notes.append("metadata_unreadable")
    if CLASS_SUFFIX in parts:
        text = decode_text(parts[CLASS_SUFFIX], notes, what="class").strip()
        short_number = text.isascii() and text.isdigit() and len(text) <= 18
        metadata.setdefault(CLASS_SUFFIX, int(text) if short_number else text)
    return metadata
