"""Procedurally drawn scenes: the data set that the embedded model learns and is judged on.

A ``Scene`` is one arrangement that fulfils a ``Description``; ``draw_scene`` paints it at any size.
Lengths in a scene are in units of the short side of the canvas, so one scene fits one aspect ratio
at any size.
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sdxl_core.data.scene_captions import (
    PALETTE,
    POSITIONS,
    SIZES,
    Description,
    Kind,
    describe,
    is_held_out,
    random_description,
)

RgbImage = npt.NDArray[np.uint8]

_COUNTED_RADIUS = (0.125, 0.15)
_MARGIN = 0.03
_GAP = 0.06
_SUPERSAMPLING = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacedObject:
    """One drawn object. Centre and radius (half of its bounding box) are in units of the short
    side."""

    shape: str
    colour: str
    centre_y: float
    centre_x: float
    radius: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """An arrangement on a canvas of ``canvas_height`` x ``canvas_width`` short sides; one of the
    two is 1."""

    description: Description
    background: str
    objects: tuple[PlacedObject, ...]
    canvas_height: float
    canvas_width: float


def caption(scene: Scene) -> str:
    """Returns the caption of a scene."""
    return describe(scene.description)


def _free_coordinate(
    rng: np.random.Generator, radius: float, length: float, third: int | None
) -> float:
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
    shifted = side + rng.uniform(-0.15, 0.15)
    other_side = float(np.clip(shifted, second + _MARGIN, across - second - _MARGIN))
    return [(start, side), (end, other_side)]


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


def _place_relation(
    rng: np.random.Generator,
    relation: str | None,
    radii: list[float],
    canvas_height: float,
    canvas_width: float,
) -> list[tuple[float, float]]:
    """Returns (y, x) of the two objects of a relation, in the caption's order."""
    vertical = relation in ("above", "below")
    reverse = relation in ("right of", "below")
    axes = (canvas_height, canvas_width) if vertical else (canvas_width, canvas_height)
    pairs = _place_pair(rng, radii[::-1] if reverse else radii, *axes)
    pairs = pairs[::-1] if reverse else pairs
    return pairs if vertical else [(across, along) for along, across in pairs]


def _draw_radii(rng: np.random.Generator, description: Description) -> list[float]:
    if description.kind == "count":
        return [float(rng.uniform(*_COUNTED_RADIUS))] * description.count
    return [
        float(rng.uniform(*SIZES[thing.size or str(rng.choice(list(SIZES)))]))
        for thing in description.things
    ]


def place_scene(
    rng: np.random.Generator, description: Description, *, height_px: int, width_px: int
) -> Scene:
    """Arranges a description on a canvas of this aspect ratio.

    What the caption leaves open (sizes, places, the background) is drawn at random.
    """
    short_px = min(height_px, width_px)
    canvas_height, canvas_width = height_px / short_px, width_px / short_px
    things = description.things * description.count
    radii = _draw_radii(rng, description)
    if description.kind == "relation":
        centres = _place_relation(rng, description.relation, radii, canvas_height, canvas_width)
    elif description.kind == "one":
        thirds = POSITIONS[description.position] if description.position else (None, None)
        y = _free_coordinate(rng, radii[0], canvas_height, thirds[0])
        x = _free_coordinate(rng, radii[0], canvas_width, thirds[1])
        centres = [(y, x)]
    else:
        centres = _place_apart(rng, radii, canvas_height, canvas_width)
    free_colours = [name for name in PALETTE if name not in {thing.colour for thing in things}]
    return Scene(
        description=description,
        background=description.background or str(rng.choice(free_colours)),
        objects=tuple(
            PlacedObject(
                shape=thing.shape, colour=thing.colour, centre_y=y, centre_x=x, radius=radius
            )
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
        uint8 RGB of shape (height_px, width_px, 3), antialiased; the aspect ratio should be the
        scene's.
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
                        ((x - r) * unit_x, (y - r) * unit_y, (x + r) * unit_x, (y + r) * unit_y),
                        fill=fill,
                    )
        else:
            corners = [
                ((x + px * radius) * unit_x, (y + py * radius) * unit_y)
                for px, py in _polygon(item.shape)
            ]
            pen.polygon(corners, fill=colour)
    return np.asarray(canvas.reduce(scale), dtype=np.uint8)
