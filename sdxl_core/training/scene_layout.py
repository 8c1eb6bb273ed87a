"""Teaches text encoders where a caption's objects lie: a second objective beside the contrastive
one.

A caption of these scenes ends long before the last token position. The positions after it are
asked, each for its own cell of a grid over the picture, what a picture of this caption has there.
The encoders are causal, so only those positions have read the whole caption. A UNet then finds the
composition (which colour belongs to which shape, and on which side it lies) spelled out by place
instead of having to infer it from words, which a small one takes far too long to learn.

Legend of shape suffixes: N samples, B batch, T token positions, D width of an encoder, K cells.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdxl_core.data.buckets import Bucket
from sdxl_core.data.scene_captions import PALETTE, SHAPES, SIZES, Kind
from sdxl_core.data.scenes import Scene, caption, random_scene

GRID_SIDE = 7
NUM_CELLS = GRID_SIDE * GRID_SIDE
# The last positions of the 77; captions of scenes end before position 17.
FIRST_CELL_POSITION = 77 - NUM_CELLS
NOTHING = -1
_MOST_OBJECTS = 4
# Share of relations beyond those that any draw has: they are what is hardest to learn.
_RELATION_SHARE = 0.6
# Spread of the phase that a random wave goes through from one side of the picture to the other.
_RADIANS_ACROSS = 3.0
# Height of the waves that spell a cell's place: as large as what the other channels learn to say.
_PLACE_SPREAD = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayoutTargets:
    """What lies where in one picture of each caption, as class numbers (int64).

    ``shape_NK`` is -1 where there is no object, else an index in ``SHAPES``, and ``colour_NK`` an
    index in ``PALETTE``, likewise; ``size_NK`` is an index in ``SIZES``, -1 also where the caption
    names no size. ``background_N`` is an index in ``PALETTE``, ``count_N`` the number of objects
    less one. Cells run row by row from the top left.
    """

    captions: list[str]
    shape_NK: Tensor
    colour_NK: Tensor
    size_NK: Tensor
    background_N: Tensor
    count_N: Tensor


def cell_centres() -> Tensor:
    """Returns (y, x) of the cells' centres as shares of height and width, (K, 2), row by row."""
    steps = (torch.arange(GRID_SIDE) + 0.5) / GRID_SIDE
    return torch.cartesian_prod(steps, steps)


def layout_cells(scene: Scene) -> npt.NDArray[np.int64]:
    """Returns shape, colour and size classes of a scene's cells, see ``LayoutTargets``, (3, K)."""
    y_K, x_K = cell_centres().double().numpy().T
    classes_3K = np.full((3, NUM_CELLS), NOTHING, dtype=np.int64)
    said = scene.description.things * scene.description.count
    for words, thing in zip(said, scene.objects, strict=True):
        inside_K = (np.abs(y_K * scene.canvas_height - thing.centre_y) <= thing.radius) & (
            np.abs(x_K * scene.canvas_width - thing.centre_x) <= thing.radius
        )
        classes_3K[:, inside_K] = [
            [SHAPES.index(thing.shape)],
            [list(PALETTE).index(thing.colour)],
            [NOTHING if words.size is None else list(SIZES).index(words.size)],
        ]
    return classes_3K


def cell_codes(width: int) -> Tensor:
    """Returns random waves over the picture, read at the cells' centres: (K, width) of unit spread.

    As position embeddings they make each cell's place visible to the encoder and, through it, to a
    UNet, with neighbours alike. At the usual tiny initial values places are as good as invisible
    beside words, and no encoder finds out within a short training that they matter.
    """
    waves_2D = _RADIANS_ACROSS * torch.randn(2, width)
    return 2**0.5 * torch.cos(cell_centres() @ waves_2D + 2 * torch.pi * torch.rand(width))


def draw_layouts(num_samples: int, *, buckets: dict[Bucket, float], seed: int) -> LayoutTargets:
    """Draws scenes that are not held out, in these buckets by their shares."""
    rng = np.random.default_rng(seed)
    sizes = list(buckets)
    scenes = []
    for i in rng.choice(len(sizes), num_samples, p=list(buckets.values())):
        height_px, width_px = sizes[int(i)]
        kind: Kind | None = "relation" if rng.random() < _RELATION_SHARE else None
        scenes.append(random_scene(rng, height_px=height_px, width_px=width_px, kind=kind))
    cells_3NK = torch.from_numpy(np.stack([layout_cells(scene) for scene in scenes], axis=1))
    return LayoutTargets(
        captions=[caption(scene) for scene in scenes],
        shape_NK=cells_3NK[0],
        colour_NK=cells_3NK[1],
        size_NK=cells_3NK[2],
        background_N=torch.tensor([list(PALETTE).index(scene.background) for scene in scenes]),
        count_N=torch.tensor([len(scene.objects) - 1 for scene in scenes]),
    )


def place_waves() -> Tensor:
    """Three cosine waves down and three across the picture, at the cells' centres: (K, 6)."""
    return torch.cat([torch.cos(torch.pi * k * cell_centres()) for k in (1, 2, 3)], dim=1)


def place_loss(states_BKD: Tensor) -> Tensor:
    """How far the cells' first six channels are from spelling their place, 0 to about 1.

    An attention finds a cell by where it lies. Left to themselves the states drown that in what the
    cell holds, at a tenth of its size, and a UNet hardly ever learns which cell is whose.
    """
    waves_K6 = place_waves()
    said_BK6 = states_BKD[..., : waves_K6.shape[1]].float() / _PLACE_SPREAD
    return 2 * (said_BK6 - waves_K6).square().mean()


class LayoutHead(nn.Module):
    """One linear reading of an encoder's penultimate states; thrown away after training.

    It is the same for every cell, so that the states themselves have to say what lies there. What
    an object looks like is asked only where there is one: over all cells, nearly all of the loss
    would be about where exactly objects lie, which no caption says.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_classes = (2, len(SHAPES), len(PALETTE), len(PALETTE), _MOST_OBJECTS, len(SIZES))
        self.read = nn.Linear(width, sum(self.num_classes))

    def loss(self, states_BTD: Tensor, targets: LayoutTargets, chosen_B: Tensor) -> Tensor:
        """Sum of the mean cross entropies of occupation, shape, colour, background, count and
        size, a scalar.

        Args:
            states_BTD: an encoder's penultimate states of the chosen captions.
            targets: of all captions.
            chosen_B: which captions these are.
        """
        states_BKD = states_BTD[:, FIRST_CELL_POSITION : FIRST_CELL_POSITION + NUM_CELLS]
        parts = self.read(states_BKD).float().split(self.num_classes, dim=-1)
        shape_BK = targets.shape_NK[chosen_B]
        expected = (
            (shape_BK != NOTHING).long(),
            shape_BK,
            targets.colour_NK[chosen_B],
            targets.background_N[chosen_B, None].expand(-1, NUM_CELLS),
            targets.count_N[chosen_B, None].expand(-1, NUM_CELLS),
            targets.size_NK[chosen_B],
        )
        total = torch.zeros(())
        for logits_BKC, classes_BK in zip(parts, expected, strict=True):
            total = total + F.cross_entropy(
                logits_BKC.flatten(0, 1), classes_BK.flatten(), ignore_index=NOTHING
            )
        return total + place_loss(states_BKD)
