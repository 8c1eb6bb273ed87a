"""Which column of a table is the picture, the caption, the name: as asked for, or by its name."""

from collections.abc import Callable
from typing import Final

import pyarrow as pa

from sdxl_core.contract.errors import SchemaError
from sdxl_core.storage.source_slices import SourceColumns

_IMAGE_NAMES: Final = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
_URI_NAMES: Final = (
    "file_name", "image_path", "image_file", "image_uri", "filename", "filepath", "path", "uri",
    "image", "img", "url",
)  # fmt: skip
_CAPTION_NAMES: Final = ("caption", "captions", "text", "txt", "prompt", "description")
_KEY_NAMES: Final = ("key", "__key__", "id", "image_id")


def choose_columns(
    schema: pa.Schema,
    *,
    url: str,
    is_text: bool,
    image: str | None = None,
    uri: str | None = None,
    caption: str | None = None,
    within_folder: bool = False,
) -> SourceColumns:
    """The columns to read.

    Args:
        schema: of the table's first file.
        url: of that file, for messages.
        is_text: the table is CSV or JSONL, where a column of bytes is base64 and must be asked for.
        image: column of picture bytes, or None to find one (or ``uri``) by its name and type.
        uri: column of paths or URLs, or None.
        caption: column of captions, or None to find it by its name.
        within_folder: see ``SourceColumns``.

    Raises:
        SchemaError: if there is no such column, or not of such a type.
    """
    for name in (image, uri, caption):
        if name is not None and name not in schema.names:
            raise SchemaError(f"{url}: no column {name!r}; {_shown(schema)}")
    if image is not None and not is_text and not holds_bytes(schema.field(image).type):
        advice = "" if not _is_text(schema.field(image).type) else "; is it the uri column?"
        raise SchemaError(
            f"{url}: column {image!r} is {schema.field(image).type}, expected bytes or "
            f"a struct of bytes and path{advice}"
        )
    if uri is not None and not _is_text(schema.field(uri).type):
        raise SchemaError(
            f"{url}: column {uri!r} is {schema.field(uri).type}, expected text: paths or URLs"
        )
    if image is None and uri is None:
        image = None if is_text else _find(schema, _IMAGE_NAMES, holds_bytes)
        uri = None if image is not None else _find(schema, _URI_NAMES, _is_text)
    if image is None and uri is None:
        raise SchemaError(
            f"{url}: no column of pictures found; name one, of bytes or of paths; {_shown(schema)}"
        )
    caption = caption or _find(schema, _CAPTION_NAMES, _is_text_or_texts)
    if caption is None:
        raise SchemaError(f"{url}: no column of captions found; name one; {_shown(schema)}")
    key = _find(schema, _KEY_NAMES, lambda kind: _is_text(kind) or pa.types.is_integer(kind))
    return SourceColumns(
        image=image,
        uri=uri,
        caption=caption,
        key=key if key not in (image, uri, caption) else None,
        within_folder=within_folder,
    )


def check_columns(schema: pa.Schema, columns: SourceColumns, *, url: str) -> None:
    """Refuses a further file of the table that lacks a column, or has it with another meaning.

    Raises:
        SchemaError: says which.
    """
    for name, fits in (
        (columns.image, holds_bytes),
        (columns.uri, _is_text),
        (columns.caption, _is_text_or_texts),
    ):
        if name is None:
            continue
        if name not in schema.names:
            raise SchemaError(f"{url}: no column {name!r}, as other files have; {_shown(schema)}")
        kind = schema.field(name).type
        if not fits(kind) and not pa.types.is_null(kind):
            raise SchemaError(f"{url}: column {name!r} is {kind} here, other than in other files")


def holds_bytes(kind: pa.DataType) -> bool:
    """Is a column of this type bytes, or Hugging Face's struct of bytes and path."""
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and holds_bytes(kind.field(position).type)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _find(
    schema: pa.Schema, names: tuple[str, ...], fits: Callable[[pa.DataType], bool]
) -> str | None:
    by_lower_name: dict[str, str] = {name.lower(): name for name in reversed(schema.names)}
    for name in names:
        found = by_lower_name.get(name)
        if found is not None and fits(schema.field(found).type):
            return found
    return None


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_text_or_texts(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return _is_text(kind.value_type if is_list else kind)


def _shown(schema: pa.Schema) -> str:
    columns = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:30])
    return f"found {columns or 'no columns'}"
