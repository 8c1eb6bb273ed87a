"""File names made from row ids: readable where they can be, and never two ids with one name."""

import hashlib

# One file of a tar may have a name of 100 bytes, suffix included; a name on disk may have 255.
MAX_NAME_CHARACTERS = 80
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
_RESERVED = {
    "con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10)),
}  # fmt: skip


def file_name_of_id(row_id: str) -> str:
    """A file name without suffix for ``row_id``; different ids have different names.

    Lower-case letters, digits, ``_`` and ``-`` stay; any other character becomes ``=`` and two hex
    digits for each of its UTF-8 bytes. Capitals are among them, as some file systems take ``A`` and
    ``a`` for one name; so are dots and slashes, hence a name never leaves its folder, and
    webdataset, which cuts keys at dots, keeps it whole. Long names keep their start, followed by a
    hash of the id.
    """
    name = "".join(character if character in _PLAIN else _escape(character) for character in row_id)
    if name in _RESERVED:  # device names on Windows, whatever their suffix
        name = _escape(name[0]) + name[1:]
    if len(name) <= MAX_NAME_CHARACTERS and name:
        return name
    # "=h" is no escape, so this name differs from all that are not hashed.
    data = row_id.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return f"{name[: MAX_NAME_CHARACTERS - 34]}=h{digest}"


def _escape(character: str) -> str:
    return "".join(f"={byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
