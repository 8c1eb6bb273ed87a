"""What a scene's caption says, its words, and reading them back.

The vocabulary is small and closed: shapes x colours x sizes x positions x relations x counts x
backgrounds. A tenth of all captions, chosen by a hash of the text, is never trained on.
"""

import dataclasses
import hashlib
import re
from typing import Literal

import numpy as np

Kind = Literal["one", "relation", "count"]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36),
    "orange": (248, 140, 24),
    "yellow": (252, 224, 48),
    "green": (44, 168, 68),
    "blue": (40, 84, 220),
    "purple": (152, 44, 192),
    "black": (18, 18, 18),
    "gray": (128, 128, 128),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES: dict[str, tuple[float, float]] = {"small": (0.125, 0.145), "large": (0.19, 0.215)}
COUNTS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")
# Phrase -> (vertical third, horizontal third) of the canvas, -1 is the top or the left.
POSITIONS: dict[str, tuple[int, int]] = {
    "in the top left": (-1, -1),
    "at the top": (-1, 0),
    "in the top right": (-1, 1),
    "on the left": (0, -1),
    "in the center": (0, 0),
    "on the right": (0, 1),
    "in the bottom left": (1, -1),
    "at the bottom": (1, 0),
    "in the bottom right": (1, 1),
}

_HELD_OUT_SHARE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing:
    """One object as a caption names it; ``size`` is None where the caption leaves it open."""

    shape: str
    colour: str
    size: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a caption says.

    ``things`` holds one object (kinds ``one`` and ``count``) or two (``relation``: the first is
    ``relation`` the second).
    """

    kind: Kind
    things: tuple[Thing, ...]
    count: int = 1
    position: str | None = None
    relation: str | None = None
    background: str | None = None


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _thing_words(thing: Thing, *, plural: bool = False) -> str:
    shape = thing.shape
    if plural:
        shape += "es" if shape.endswith("s") else "s"
    return " ".join(word for word in (thing.size, thing.colour, shape) if word)


def describe(description: Description) -> str:
    """Returns the caption, e.g. ``a large red circle left of a small blue square, on a yellow
    background``."""
    first = description.things[0]
    if description.kind == "count":
        number = next(word for word, count in COUNTS.items() if count == description.count)
        text = f"{number} {_thing_words(first, plural=True)}"
    else:
        text = _with_article(_thing_words(first))
    if description.relation is not None:
        text += f" {description.relation} {_with_article(_thing_words(description.things[1]))}"
    if description.position is not None:
        text += f" {description.position}"
    if description.background is not None:
        text += f", on {_with_article(description.background)} background"
    return text


_SIZE_WORDS, _COLOUR_WORDS, _SHAPE_WORDS = "|".join(SIZES), "|".join(PALETTE), "|".join(SHAPES)
_THING_PATTERN = (
    rf"(?:(?P<size{{0}}>{_SIZE_WORDS}) )?"
    rf"(?P<colour{{0}}>{_COLOUR_WORDS}) (?P<shape{{0}}>{_SHAPE_WORDS})"
)
_BACKGROUND_PATTERN = rf"(?:,? on an? (?P<background>{_COLOUR_WORDS}) background)?"
_ONE_PATTERN = re.compile(
    rf"an? {_THING_PATTERN.format(0)}(?: (?P<position>{'|'.join(POSITIONS)}))?{_BACKGROUND_PATTERN}"
)
_RELATION_PATTERN = re.compile(
    rf"an? {_THING_PATTERN.format(0)} (?P<relation>{'|'.join(RELATIONS)}) "
    rf"an? {_THING_PATTERN.format(1)}{_BACKGROUND_PATTERN}"
)
_COUNT_PATTERN = re.compile(
    rf"(?P<count>{'|'.join(COUNTS)}) {_THING_PATTERN.format(0)}(?:s|es){_BACKGROUND_PATTERN}"
)


def parse_caption(text: str) -> Description | None:
    """Reads a caption of this module's grammar back; None if ``text`` is not one."""
    patterns: tuple[tuple[Kind, re.Pattern[str]], ...] = (
        ("one", _ONE_PATTERN),
        ("relation", _RELATION_PATTERN),
        ("count", _COUNT_PATTERN),
    )
    for kind, pattern in patterns:
        match = pattern.fullmatch(text.strip().rstrip(".").lower())
        if match is None:
            continue
        found = match.groupdict()
        things = tuple(
            Thing(shape=found[f"shape{i}"], colour=found[f"colour{i}"], size=found[f"size{i}"])
            for i in range(2 if kind == "relation" else 1)
        )
        return Description(
            kind=kind,
            things=things,
            count=COUNTS[found["count"]] if kind == "count" else 1,
            position=found.get("position"),
            relation=found.get("relation"),
            background=found["background"],
        )
    return None


def is_held_out(text: str) -> bool:
    """Whether a caption belongs to the tenth that is never trained on; a pure function of its
    text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < _HELD_OUT_SHARE * 2**64


def random_description(rng: np.random.Generator, *, kind: Kind | None = None) -> Description:
    """Draws a description; without ``kind`` a third is one object, half a relation, the rest
    counts."""
    if kind is None:
        kinds: tuple[Kind, ...] = ("one", "relation", "count")
        kind = kinds[int(rng.choice(3, p=(0.35, 0.45, 0.2)))]
    colours = [str(name) for name in rng.permutation(list(PALETTE))]
    background = colours.pop() if rng.random() < 0.9 else None
    shapes = [str(rng.choice(SHAPES)) for _ in range(2)]
    sizes = [str(rng.choice(list(SIZES))) if rng.random() < 0.6 else None for _ in range(2)]
    things = [
        Thing(shape=shapes[i], colour=colours[i], size=sizes[i] if kind != "count" else None)
        for i in range(2 if kind == "relation" else 1)
    ]
    if kind == "relation" and rng.random() < 0.1 and things[0].shape != things[1].shape:
        things[1] = dataclasses.replace(things[1], colour=things[0].colour)
    return Description(
        kind=kind,
        things=tuple(things),
        count=int(rng.integers(2, 5)) if kind == "count" else 1,
        position=str(rng.choice(list(POSITIONS))) if kind == "one" and rng.random() < 0.5 else None,
        relation=str(rng.choice(RELATIONS)) if kind == "relation" else None,
        background=background,
    )
