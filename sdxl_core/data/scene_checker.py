"""Measures from the pixels alone whether a picture shows what a scene's caption says.

The background is the palette colour that rules the border; what differs from it is split into
connected pieces; each piece gets a colour (nearest in the palette), a shape (best overlap with the
shapes as they are drawn), a size and a place. The finding is compared with the description,
attribute by attribute.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np
import numpy.typing as npt

from sdxl_core.data.scene_captions import PALETTE, POSITIONS, SHAPES, Description, Thing
from sdxl_core.data.scenes import PlacedObject, RgbImage, Scene, draw_scene

Mask = npt.NDArray[np.bool_]

# A blend of half background and half object is this far from the background, or farther.
_LEAST_COLOUR_DISTANCE = 48.0
# Pieces below this share of the squared short side are specks; the smallest star has 0.018.
_LEAST_AREA = 0.004
_LEAST_OVERLAP = 0.72
_MOST_ELONGATION = 1.35
# Half of the bounding box in short sides: small shapes go up to 0.145, large ones start at 0.19.
_SIZE_BOUNDARY = 0.168
_THIRDS = (0.38, 0.62)
_TEMPLATE_SIDE = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundObject:
    """One connected piece. Centre is a share of height and width, radius is in short sides."""

    shape: str | None
    colour: str
    size: str
    centre_y: float
    centre_x: float
    radius: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneFinding:
    """What a picture shows."""

    background: str
    objects: tuple[FoundObject, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneVerdict:
    """``wrong`` names the attributes that do not fit: count, shape, colour, size, position,
    relation, background."""

    wrong: tuple[str, ...]
    finding: SceneFinding

    @property
    def right(self) -> bool:
        """Whether everything that the caption says is there, and nothing more."""
        return not self.wrong


def nearest_colour(rgb: npt.ArrayLike) -> str:
    """Returns the name of the palette colour nearest to ``rgb`` (0 to 255)."""
    distances = np.linalg.norm(
        np.array(list(PALETTE.values()), dtype=float) - np.asarray(rgb, dtype=float), axis=1
    )
    return list(PALETTE)[int(distances.argmin())]


def connected_pieces(mask: Mask) -> list[Mask]:
    """Returns the 4-connected pieces of a mask, each as a mask of the same shape, largest first."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        neighbours = np.maximum.reduce(
            [labels, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        )
        spread = np.where(mask, neighbours, 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    numbers, counts = np.unique(labels[mask], return_counts=True)
    return [labels == numbers[i] for i in np.argsort(-counts)]


def _crop(mask: Mask) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _resized(mask: Mask) -> Mask:
    """Returns the mask's bounding box stretched to the template's square, by nearest neighbour."""
    box = mask[_crop(mask)]
    steps = (np.arange(_TEMPLATE_SIDE) + 0.5) / _TEMPLATE_SIDE
    return box[np.ix_((steps * box.shape[0]).astype(int), (steps * box.shape[1]).astype(int))]


@functools.cache
def _templates() -> dict[str, Mask]:
    templates = {}
    for shape in SHAPES:
        item = PlacedObject(shape=shape, colour="black", centre_y=0.5, centre_x=0.5, radius=0.4)
        description = Description(kind="one", things=(Thing(shape=shape, colour="black"),))
        scene = Scene(
            description=description,
            background="white",
            objects=(item,),
            canvas_height=1.0,
            canvas_width=1.0,
        )
        templates[shape] = _resized(draw_scene(scene, 128, 128).mean(2) < 128)
    return templates


def classify_shape(piece: Mask) -> str | None:
    """Returns the shape whose drawing overlaps best with a piece, or None if none overlaps well."""
    box = piece[_crop(piece)]
    if max(box.shape) > _MOST_ELONGATION * min(box.shape):
        return None
    normal = _resized(piece)
    overlaps = {
        shape: float((normal & template).sum() / (normal | template).sum())
        for shape, template in _templates().items()
    }
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= _LEAST_OVERLAP else None


def _eroded(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    inner: Mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner if inner.any() else mask


def find_objects(rgb_HWC: RgbImage) -> SceneFinding:
    """Segments a picture.

    Args:
        rgb_HWC: uint8 picture of any size from about 64 pixels.

    Returns:
        The background colour and the objects, the largest first.
    """
    height_px, width_px = rgb_HWC.shape[:2]
    short_px = min(height_px, width_px)
    border = np.concatenate([rgb_HWC[0], rgb_HWC[-1], rgb_HWC[:, 0], rgb_HWC[:, -1]]).astype(float)
    names = [nearest_colour(rgb) for rgb in border]
    background = max(sorted(set(names)), key=names.count)
    background_rgb = np.median(border[[name == background for name in names]], axis=0)
    mask = np.linalg.norm(rgb_HWC.astype(float) - background_rgb, axis=2) > _LEAST_COLOUR_DISTANCE
    objects = []
    for piece in connected_pieces(mask):
        if piece.sum() < _LEAST_AREA * short_px**2:
            break
        rows, columns = _crop(piece)
        radius = max(rows.stop - rows.start, columns.stop - columns.start) / 2 / short_px
        objects.append(
            FoundObject(
                shape=classify_shape(piece),
                colour=nearest_colour(np.median(rgb_HWC[_eroded(piece)], axis=0)),
                size="small" if radius < _SIZE_BOUNDARY else "large",
                centre_y=(rows.start + rows.stop) / 2 / height_px,
                centre_x=(columns.start + columns.stop) / 2 / width_px,
                radius=radius,
            )
        )
    return SceneFinding(background=background, objects=tuple(objects))


def _third(share: float) -> int:
    return -1 if share < _THIRDS[0] else 1 if share > _THIRDS[1] else 0


def _thing_faults(thing: Thing, found: FoundObject) -> list[str]:
    faults = []
    if found.shape != thing.shape:
        faults.append("shape")
    if found.colour != thing.colour:
        faults.append("colour")
    if thing.size is not None and found.size != thing.size:
        faults.append("size")
    return faults


def _relation_holds(
    relation: str, first: FoundObject, second: FoundObject, rgb_HWC: RgbImage
) -> bool:
    down = (second.centre_y - first.centre_y) * rgb_HWC.shape[0]
    right = (second.centre_x - first.centre_x) * rgb_HWC.shape[1]
    angle = math.degrees(math.atan2(down, right)) % 360
    towards = {"left of": 0, "above": 90, "right of": 180, "below": 270}[relation]
    return abs((angle - towards + 180) % 360 - 180) < 45


def check_scene(description: Description, rgb_HWC: RgbImage) -> SceneVerdict:
    """Judges a picture by a description.

    Args:
        description: what should be there, e.g. from ``parse_caption``.
        rgb_HWC: uint8 picture.

    Returns:
        The verdict; where objects can be matched in several ways, the kindest one.
    """
    finding = find_objects(rgb_HWC)
    wrong: set[str] = set()
    if description.background is not None and finding.background != description.background:
        wrong.add("background")
    expected = description.things * description.count
    if len(finding.objects) != len(expected):
        return SceneVerdict(wrong=(*sorted(wrong), "count"), finding=finding)
    readings = []
    for order in itertools.permutations(finding.objects):
        faults = {
            fault
            for thing, found in zip(expected, order, strict=True)
            for fault in _thing_faults(thing, found)
        }
        if description.relation and not _relation_holds(
            description.relation, order[0], order[1], rgb_HWC
        ):
            faults.add("relation")
        readings.append(faults)
    wrong |= min(readings, key=lambda faults: (len(faults), sorted(faults)))
    if description.position is not None:
        found = finding.objects[0]
        if (_third(found.centre_y), _third(found.centre_x)) != POSITIONS[description.position]:
            wrong.add("position")
    return SceneVerdict(wrong=tuple(sorted(wrong)), finding=finding)
