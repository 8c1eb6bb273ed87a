"""One description of a run: frozen dataclasses, written as TOML, read back strictly.

In: a class decorated with ``@config`` and a TOML recipe. Out: an instance, or a ``ConfigError``
that names the file and every wrong key at once. The fields split in two: the table ``how`` (batch
size, replicas, retries) says how the work is spread, all others say *what* is produced and make up
the fingerprint, save those of type ``Location``, which say only where bytes lie.

Called by ``jobs`` (the command, resume) and by every module that has settings of its own.
"""

import dataclasses
import difflib
import enum
import hashlib
import json
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from sdxl_core.contract.errors import ConfigError

T = TypeVar("T")


class _WhereNotWhat:
    """Marker of ``Location``; it has no behaviour."""


NOT_WHAT = _WhereNotWhat()
"""Marks a field that changes nothing that is produced, so that the fingerprint leaves it out."""

Location = Annotated[str, NOT_WHAT]
"""A path or URL. It is stored with the run and left out of its fingerprint: moving data changes
nothing that is produced. What the bytes there *are* enters ``fingerprint`` as an identity."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Frozen keyword-only dataclass that refuses unknown keys when it is read from TOML."""
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]  # read by pydantic
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One setting of a config: dotted name, type and default as text (``""``: it is required)."""

    name: str
    type: str
    default: str


def options(cls: type[Any], prefix: str = "", defaults: object = None) -> Iterator[Option]:
    """Every setting of ``cls`` and of the configs nested in it, in order of definition.

    ``prefix`` goes before each name; ``defaults`` is an instance whose values are the defaults.
    """
    for name, field, hint in _fields(cls):
        bare_type, default = _bare(hint), getattr(defaults, name, _default(field))
        if isinstance(bare_type, type) and dataclasses.is_dataclass(bare_type):
            yield from options(bare_type, f"{prefix}{name}.", default)
        else:
            text = "" if default is dataclasses.MISSING else repr(default)
            yield Option(name=prefix + name, type=_type_text(bare_type), default=text)


def suggest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` dotted names that ``name`` may stand for, misplaced or misspelt."""

    def likeness(key: str) -> float:
        whole = difflib.SequenceMatcher(a=key, b=name).ratio()
        leaves = key.rpartition(".")[2], name.rpartition(".")[2]
        return max(whole, difflib.SequenceMatcher(a=leaves[0], b=leaves[1]).ratio())

    likely = max(known, key=likeness, default=None)
    return likely if likely is not None and likeness(likely) > 0.6 else None


def load_toml(cls: type[T], path: str | Path) -> T:
    """The ``cls`` that the TOML file at ``path`` describes.

    Raises:
        ConfigError: the file cannot be read; or it has unknown keys, values of a wrong type or
            misses keys. Integers are accepted for floats, nothing else is converted.
    """
    values = read_recipe(cls, path)
    missing = [
        f"{path}: {name}: is required and not given"
        for name, field, _ in _fields(cls)
        if _default(field) is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise ConfigError("\n".join(missing))
    return cls(**values)


def read_recipe(cls: type[Any], path: str | Path) -> dict[str, Any]:
    """The checked values that a TOML file sets, by field; fields it does not set are absent.

    A nested table changes the keys that it names and keeps the others at the field's default.
    Raises ConfigError as ``load_toml`` does, save for missing keys at the top.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe: {error}") from error
    table = parse_toml(text, where=str(path))
    known = {name for name, _, _ in _fields(cls)}
    problems = [_unknown_key(cls, key) for key in table if key not in known]
    values = {}
    for name, field, hint in _fields(cls):
        if name in table:
            merged = _over_default(_default(field), table[name])
            values[name], field_problems = _decode(cls, name, hint, merged)
            problems += field_problems
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return values


def parse_toml(text: str, *, where: str) -> dict[str, Any]:
    """``text`` as a table, or a ConfigError that starts with ``where``."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: is not TOML: {error}") from error


def to_toml(config: object) -> str:
    """All settings of ``config`` as TOML that ``load_toml`` reads back to an equal value.

    TOML has no null: a field that is None is left out, so None must be its default.
    """
    import tomli_w

    return tomli_w.dumps(_to_table(config))


def fingerprint(config: object, **identities: str) -> str:
    """16 hex digits that are equal when and only when the same thing is produced.

    Hashed are all settings but ``how`` and the ``Location`` fields, and ``identities``: digests of
    what lies at the locations (``model=...``, ``prompts=...``).
    """
    what = {"config": _what(config, _to_table(config)), "identities": identities}
    canonical = json.dumps(what, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def diff_toml(old_text: str, new_text: str) -> list[str]:
    """Lines like ``steps: 20 -> 30`` for the dotted keys in which two TOML texts differ."""
    old = parse_toml(old_text, where="old settings")
    return _diff(old, parse_toml(new_text, where="new settings"))


def refuse_mismatch(old_toml: str, new: object, *, out: str) -> None:
    """Checks that a resume of ``out`` produces what was begun there.

    Args:
        old_toml: the text of ``_run.toml`` in ``out``.
        new: the config of this run.
        out: where the output lies, for the message.

    Raises:
        ConfigError: the two differ in *what* is produced; the message is their difference.
    """
    old_table = parse_toml(old_toml, where=f"{out}/_run.toml")
    lines = _diff(_what(new, old_table), _what(new, _to_table(new)))
    if lines:
        raise ConfigError(
            f"{out} was begun with other settings, and a resume must produce the same thing:\n  "
            + "\n  ".join(lines)
            + "\nUse the same settings to go on (those under `how` may change), or another OUT."
        )


def _fields(cls: type[Any]) -> list[tuple[str, dataclasses.Field[Any], Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return [(f.name, f, hints[f.name]) for f in dataclasses.fields(cls) if f.init]


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _type_text(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(_type_text(member) for member in get_args(hint))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _over_default(default: Any, value: Any) -> Any:
    if not (dataclasses.is_dataclass(default) and isinstance(value, dict)):
        return value
    nested = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
    changed = {key: _over_default(nested.get(key), item) for key, item in value.items()}
    return {**_to_table(default), **changed}


def _decode(cls: type[Any], name: str, hint: Any, value: Any) -> tuple[Any, list[str]]:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(hint).validate_json(json.dumps(value), strict=True), []
    except ValidationError as error:
        return None, [_explain(cls, name, dict(e)) for e in error.errors(include_url=False)]
    except ConfigError as error:  # a __post_init__ of ours, which names its field
        return None, [f"{name}: {error}"]
    except TypeError:  # TOML's dates have no JSON form
        return None, [f"{name}: dates and times are not used here, found {value!r}"]


def _explain(cls: type[Any], name: str, error: Mapping[str, Any]) -> str:
    key = ".".join([name, *map(str, error["loc"])])
    if error["type"] == "unexpected_keyword_argument":
        return _unknown_key(cls, key)
    if error["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{key}: is required and not given"
    found = repr(error["input"])
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {message}, found {found if len(found) <= 80 else found[:77] + '...'}"


def _unknown_key(cls: type[Any], key: str) -> str:
    known = [option.name for option in options(cls)] + [name for name, _, _ in _fields(cls)]
    likely = suggest(key, known)
    return f"{key}: unknown key" + (f"; did you mean {likely}?" if likely else "")


def _to_table(config: Any) -> dict[str, Any]:
    table = {}
    for name, field, hint in _fields(type(config)):
        value = getattr(config, name)
        if value is not None:
            table[name] = _plain(value, _bare(hint))
        elif _default(field) not in (None, dataclasses.MISSING):
            name = f"{type(config).__name__}.{name}"
            raise TypeError(f"{name} is None, which TOML cannot say: make None its default")
    return table


def _plain(value: Any, hint: Any) -> Any:
    """``value`` in TOML's types. ``hint`` makes an int in a float field the float that it means."""
    if dataclasses.is_dataclass(value):
        return _to_table(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    arguments = get_args(hint)
    if isinstance(value, Mapping):
        item_hint = arguments[1] if arguments else None
        return {str(key): _plain(item, item_hint) for key, item in value.items()}
    if isinstance(value, list | tuple):
        repeated = isinstance(value, list) or arguments[1:] == (Ellipsis,)
        hints = (arguments[:1] or (None,)) * len(value) if repeated or not arguments else arguments
        return [_plain(item, item_hint) for item, item_hint in zip(value, hints, strict=True)]
    if type(value) is int and (hint is float or (float in arguments and int not in arguments)):
        return float(value)
    return value


def _what(config: Any, table: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``table``, settings of ``config``'s class, that says what is produced."""
    kept = {}
    hints = {name: hint for name, _, hint in _fields(type(config))}
    for key, value in table.items():
        metadata = getattr(hints.get(key), "__metadata__", ())
        if key == "how" or any(isinstance(item, _WhereNotWhat) for item in metadata):
            continue
        nested = getattr(config, key, None)
        inside = dataclasses.is_dataclass(nested) and isinstance(value, Mapping)
        kept[key] = _what(nested, value) if inside else value
    return kept


def _diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    old_flat, new_flat = dict(_flatten(old)), dict(_flatten(new))
    keys = [*old_flat, *(key for key in new_flat if key not in old_flat)]
    absent = "(not set)"
    return [
        f"{key}: {old_flat.get(key, absent)} -> {new_flat.get(key, absent)}"
        for key in keys
        if old_flat.get(key) != new_flat.get(key)
    ]


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value, ensure_ascii=False, default=str)
