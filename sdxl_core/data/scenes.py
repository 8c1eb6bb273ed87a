"""Procedurally drawn scenes with captions: the data set that the embedded model learns and is judged on.

A ``Description`` is what a caption says (shapes, colours, sizes, place, relation, count, background); a
``Scene`` is one arrangement that fulfils it; ``draw_scene`` paints it at any size. ``describe`` and ``parse_caption``
turn a description into words and back, so that ``sdxl_core.data.scene_checker`` can judge a picture by its prompt.

Lengths in a scene are in units of the short side of the canvas, so one scene fits one aspect ratio at any size.
"""

import dataclasses
import hashlib
import math
import re
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Kind = Literal["one", "relation", "count"]
RgbImage = npt.NDArray[np.uint8]

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
SIZES: dict[str, tuple[float, float]] = {"small": (0.10, 0.125), "large": (0.18, 0.21)}
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

_MARGIN = 0.03
_GAP = 0.06
_SUPERSAMPLING = 4
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

    ``things`` holds one object (kinds ``one`` and ``count``) or two (``relation``: the first is ``relation`` the second).
    """

    kind: Kind
    things: tuple[Thing, ...]
    count: int = 1
    position: str | None = None
    relation: str | None = None
    background: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacedObject:
    """One drawn object. Centre and radius (half of its bounding box) are in units of the short side."""

    shape: str
    colour: str
    centre_y: float
    centre_x: float
    radius: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """An arrangement on a canvas of ``canvas_height`` x ``canvas_width`` short sides; one of the two is 1."""

    description: Description
    background: str
    objects: tuple[PlacedObject, ...]
    canvas_height: float
    canvas_width: float


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _thing_words(thing: Thing, *, plural: bool = False) -> str:
    shape = thing.shape
    if plural:
        shape += "es" if shape.endswith("s") else "s"
    return " ".join(word for word in (thing.size, thing.colour, shape) if word)


def describe(description: Description) -> str:
    """Returns the caption, e.g. ``a large red circle left of a small blue square, on a yellow background``."""
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


def caption(scene: Scene) -> str:
    """Returns the caption of a scene."""
    return describe(scene.description)


_THING_PATTERN = rf"(?:(?P<size{{0}}>{'|'.join(SIZES)}) )?(?P<colour{{0}}>{'|'.join(PALETTE)}) (?P<shape{{0}}>{'|'.join(SHAPES)})"
_BACKGROUND_PATTERN = rf"(?:,? on an? (?P<background>{'|'.join(PALETTE)}) background)?"
_ONE_PATTERN = re.compile(
    rf"an? {_THING_PATTERN.format(0)}(?: (?P<position>{'|'.join(POSITIONS)}))?{_BACKGROUND_PATTERN}"
)
_RELATION_PATTERN = re.compile(
    rf"an? {_THING_PATTERN.format(0)} (?P<relation>{'|'.join(RELATIONS)}) an? {_THING_PATTERN.format(1)}{_BACKGROUND_PATTERN}"
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
    """Whether a caption belongs to the tenth that is never trained on; a pure function of its text."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < _HELD_OUT_SHARE * 2**64


def random_description(rng: np.random.Generator, *, kind: Kind | None = None) -> Description:
    """Draws a description; without ``kind`` a third is one object, half a relation, the rest counts."""
    if kind is None:
        kind = ("one", "relation", "count")[int(rng.choice(3, p=(0.35, 0.45, 0.2)))]
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


def _free_coordinate(rng: np.random.Generator, radius: float, length: float, third: int | None) -> float:
    low, high = radius + _MARGIN, length - radius - _MARGIN
    if third == -1:
        high = max(low + 0.02, 0.30 * length)
    elif third == 1:
        low = min(high - 0.02, 0.70 * length)
    elif third == 0:
        low, high = 0.46 * length, 0.54 * length
    return float(rng.uniform(low, high))


def _place_pair(
    rng: np.random.Generator, radii: list[float], along: float, across: float
) -> list[tuple[float, float]]:
    """Returns (along, across) of two objects, the first before the second along one axis."""
    first, second = radii
    least_step = first + second + _GAP
    start = float(rng.uniform(first + _MARGIN, along - _MARGIN - second - least_step))
    end = float(rng.uniform(start + least_step, along - _MARGIN - second))
    side = _free_coordinate(rng, max(radii), across, None)
    return [
        (start, side),
        (
            end,
            float(np.clip(side + rng.uniform(-0.15, 0.15), second + _MARGIN, across - second - _MARGIN)),
        ),
    ]


def _place_apart(
    rng: np.random.Generator, radii: list[float], canvas_height: float, canvas_width: float
) -> list[tuple[float, float]]:
    """Returns (y, x) of objects that do not touch, by rejection; starts over when it is stuck."""
    while True:
        centres: list[tuple[float, float]] = []
        for radius in radii:
            for _ in range(50):
                y = _free_coordinate(rng, radius, canvas_height, None)
                x = _free_coordinate(rng, radius, canvas_width, None)
                if all(
                    max(abs(y - other_y), abs(x - other_x)) > radius + other + _GAP
                    for (other_y, other_x), other in zip(centres, radii, strict=False)
                ):
                    centres.append((y, x))
                    break
        if len(centres) == len(radii):
            return centres


def place_scene(
    rng: np.random.Generator, description: Description, *, height_px: int, width_px: int
) -> Scene:
    """Arranges a description on a canvas of this aspect ratio; what the caption leaves open is drawn at random."""
    short_px = min(height_px, width_px)
    canvas_height, canvas_width = height_px / short_px, width_px / short_px
    things = description.things * description.count
    if description.kind == "count":
        radii = [float(rng.uniform(0.10, 0.14))] * description.count
    else:
        radii = [
            float(rng.uniform(*SIZES[thing.size or str(rng.choice(list(SIZES)))])) for thing in things
        ]
    if description.kind == "relation":
        vertical = description.relation in ("above", "below")
        reverse = description.relation in ("right of", "below")
        ordered = radii[::-1] if reverse else radii
        axes = (canvas_height, canvas_width) if vertical else (canvas_width, canvas_height)
        pairs = _place_pair(rng, ordered, *axes)
        pairs = pairs[::-1] if reverse else pairs
        centres = pairs if vertical else [(across, along) for along, across in pairs]
    elif description.kind == "one":
        third_y, third_x = POSITIONS[description.position] if description.position else (None, None)
        centres = [
            (
                _free_coordinate(rng, radii[0], canvas_height, third_y),
                _free_coordinate(rng, radii[0], canvas_width, third_x),
            )
        ]
    else:
        centres = _place_apart(rng, radii, canvas_height, canvas_width)
    taken = {thing.colour for thing in things}
    free_colours = [name for name in PALETTE if name not in taken]
    return Scene(
        description=description,
        background=description.background or str(rng.choice(free_colours)),
        objects=tuple(
            PlacedObject(shape=thing.shape, colour=thing.colour, centre_y=y, centre_x=x, radius=radius)
            for thing, radius, (y, x) in zip(things, radii, centres, strict=True)
        ),
        canvas_height=canvas_height,
        canvas_width=canvas_width,
    )


def random_scene(
    rng: np.random.Generator, *, height_px: int, width_px: int, kind: Kind | None = None
) -> Scene:
    """Draws a scene whose caption is not held out."""
    description = random_description(rng, kind=kind)
    while is_held_out(describe(description)):
        description = random_description(rng, kind=kind)
    return place_scene(rng, description, height_px=height_px, width_px=width_px)


def _polygon(shape: str) -> list[tuple[float, float]]:
    """Returns the (x, y) corners of a shape whose bounding box is [-1, 1] wide or high."""
    if shape == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.9), (-1.0, 0.9)]
    if shape == "cross":
        arm = 0.34
        return [
            (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
            (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
        ]  # fmt: skip
    corners = []
    for i in range(10):
        length = 1.08 if i % 2 == 0 else 0.48
        angle = math.pi * i / 5
        corners.append((length * math.sin(angle), 0.08 - length * math.cos(angle)))
    return corners


def draw_scene(scene: Scene, height_px: int, width_px: int) -> RgbImage:
    """Paints a scene.

    Returns:
        uint8 RGB of shape (height_px, width_px, 3), antialiased; the aspect ratio should be the scene's.
    """
    scale = _SUPERSAMPLING
    canvas = Image.new("RGB", (width_px * scale, height_px * scale), PALETTE[scene.background])
    pen = ImageDraw.Draw(canvas)
    unit_y = height_px * scale / scene.canvas_height
    unit_x = width_px * scale / scene.canvas_width
    for item in scene.objects:
        colour = PALETTE[item.colour]
        y, x, radius = item.centre_y, item.centre_x, item.radius
        if item.shape in ("circle", "ring"):
            for share, fill in ((1.0, colour), (0.5, PALETTE[scene.background])):
                if share == 1.0 or item.shape == "ring":
                    r = radius * share
                    pen.ellipse(
                        ((x - r) * unit_x, (y - r) * unit_y, (x + r) * unit_x, (y + r) * unit_y), fill=fill
                    )
        else:
            corners = [
                ((x + px * radius) * unit_x, (y + py * radius) * unit_y) for px, py in _polygon(item.shape)
            ]
            pen.polygon(corners, fill=colour)
    return np.asarray(canvas.reduce(scale), dtype=np.uint8)
