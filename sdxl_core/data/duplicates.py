"""Pictures that are there twice: the same bytes, or almost the same look.

The look is a 64-bit hash of a picture's lowest frequencies (the well-known pHash): two files of one
picture, of other sizes or qualities, differ in a few bits; two pictures in about 32. It is taken of
the whole upright picture, before any crop.

Near pairs among millions are found without comparing all: 64 bits are cut into bands, and hashes at
most ``d`` bits apart agree in all but ``d`` of the bands. For every choice of the bands that may
agree the hashes are sorted by those, and only neighbours that agree are compared.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sdxl_core.contract.errors import ConfigError

MAX_NEAR_DISTANCE = 8  # the search takes far longer beyond, and the pairs mean little

_SIDE = 32  # of the small grey picture
_KEPT = 8  # lowest frequencies of each direction
_HASH_BITS = 64
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Rows to leave out. The arrays are equally long and in order of ``losers``.

    Args:
        losers: int64, places of the rows to leave out.
        winners: int64, the row that each of them is like; it stays.
        are_exact: bool, the same bytes rather than a similar look.
    """

    losers: npt.NDArray[np.int64]
    winners: npt.NDArray[np.int64]
    are_exact: npt.NDArray[np.bool_]


def perceptual_hash(rgb_HWC: npt.NDArray[np.uint8]) -> int:
    """The hash of a picture's look, in ``[0, 2**64)``.

    Args:
        rgb_HWC: uint8, of any size. Sizes and qualities of the same picture change few bits.
    """
    rgb_1HWC = torch.from_numpy(np.require(rgb_HWC, requirements=["C", "W"]))[None]
    small_1CHW = torch.nn.functional.interpolate(
        rgb_1HWC.permute(0, 3, 1, 2),
        size=(_SIDE, _SIDE),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
    grey_HW = small_1CHW[0].permute(1, 2, 0).numpy().astype(np.float32) @ _LUMA
    basis = _cosines()
    low = (basis @ grey_HW @ basis.T).ravel()
    # The first is the mean brightness, which says little. A margin of a thousandth of a level keeps
    # the rounding of floating point out of plain pictures: all of those look alike.
    median = np.sort(low[1:])[(len(low) - 1) // 2]  # of an odd number; np.median takes far longer
    bits = low > median + 1
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def find_duplicates(
    ids: Sequence[Any] | npt.NDArray[Any],
    sha256: Sequence[str] | npt.NDArray[Any],
    phash: npt.NDArray[np.uint64] | None = None,
    *,
    near_distance: int = 3,
) -> Duplicates:
    """Which rows to leave out so that no two of the rest are duplicates.

    Rows are gone through by rising id; one that has the bytes, or is within ``near_distance`` bits,
    of a row that stays is left out. So the outcome depends on the rows alone, not on their order,
    and a chain of slowly changing pictures is not swallowed whole.

    Args:
        ids: one for each source row (not one for each crop), all different: texts or numbers.
        sha256: of the files.
        phash: of the pictures, uint64; None finds exact duplicates only.
        near_distance: bits, 0 to ``MAX_NEAR_DISTANCE``.

    Raises:
        ConfigError: if ``near_distance`` is out of range.
    """
    if not 0 <= near_distance <= MAX_NEAR_DISTANCE:
        raise ConfigError(
            f"near duplicates: found a distance of {near_distance} bits, expected 0 to "
            f"{MAX_NEAR_DISTANCE}; pictures that have nothing in common are about 32 apart"
        )
    order = np.argsort(np.asarray(ids), kind="stable")
    hashes = np.asarray(sha256, dtype="S64")[order]
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    winners = first[inverse]  # np.unique's index is that of the first, so the lowest id
    are_exact = winners != np.arange(len(order))
    if phash is not None:
        left = np.flatnonzero(~are_exact)
        nearest = _near_winners(np.asarray(phash, np.uint64)[order][left], near_distance)
        winners[left] = left[nearest]
        # A row with the bytes of one that is left out for its look points at the one that stays.
        winners = winners[winners]
    losers = np.flatnonzero(winners != np.arange(len(order)))
    by_place = np.argsort(order[losers])
    return Duplicates(
        losers=order[losers][by_place].astype(np.int64),
        winners=order[winners[losers]][by_place].astype(np.int64),
        are_exact=are_exact[losers][by_place],
    )


def near_pairs(
    hashes: npt.NDArray[np.uint64], distance: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All pairs of places ``i < j`` whose hashes, all different, differ in 1 to ``distance`` bits.

    Returns:
        Places i and places j, int64, sorted by j, then i.
    """
    found = np.empty(0, np.int64)
    num_rows = len(hashes)
    if num_rows < 2 or distance < 1:
        return found, found
    for mask in _band_masks(num_rows, distance):
        keys = hashes & mask
        order = np.argsort(keys, kind="stable")
        sorted_keys, sorted_hashes = keys[order], hashes[order]
        starts = np.arange(num_rows - 1)
        for step in range(1, num_rows):
            starts = starts[starts + step < num_rows]
            starts = starts[sorted_keys[starts] == sorted_keys[starts + step]]
            if not len(starts):
                break
            differing = np.bitwise_count(sorted_hashes[starts] ^ sorted_hashes[starts + step])
            near = starts[differing <= distance]
            one, other = order[near], order[near + step]
            # One number for each pair keeps the many tables' repeats easy to drop.
            pairs = np.maximum(one, other) * num_rows + np.minimum(one, other)
            found = np.concatenate([found, pairs])
    found = np.unique(found)
    return found % num_rows, found // num_rows


def _near_winners(phash: npt.NDArray[np.uint64], distance: int) -> npt.NDArray[np.int64]:
    """For every row, by rising place, the place of the row that it gives way to, or its own."""
    unique, first, inverse = np.unique(phash, return_index=True, return_inverse=True)
    by_first = np.argsort(first)  # hashes by their first row
    earlier, later = near_pairs(unique[by_first], distance)
    gives_way_to = np.arange(len(unique))
    for one, other in zip(earlier.tolist(), later.tolist(), strict=True):
        if gives_way_to[one] == one and gives_way_to[other] == other:
            gives_way_to[other] = one
    rank = np.empty_like(by_first)
    rank[by_first] = np.arange(len(by_first))
    return np.asarray(first[by_first][gives_way_to[rank[inverse]]], np.int64)


def _band_masks(num_rows: int, distance: int) -> list[np.uint64]:
    """Bits that have to agree, for each table: enough of them that few rows agree by chance."""
    agreeing = 1
    while agreeing < 4 and _HASH_BITS * agreeing // (distance + agreeing) < np.log2(num_rows) + 4:
        agreeing += 1
    edges = np.linspace(0, _HASH_BITS, distance + agreeing + 1).round().astype(int).tolist()
    bands = [(1 << end) - (1 << start) for start, end in itertools.pairwise(edges)]
    return [np.uint64(sum(some)) for some in itertools.combinations(bands, agreeing)]


@functools.cache
def _cosines() -> npt.NDArray[np.float32]:
    """Rows of the discrete cosine transform (II) of ``_SIDE`` values, the lowest ``_KEPT``."""
    places = np.pi * (np.arange(_SIDE) + 0.5) / _SIDE
    return np.cos(np.arange(_KEPT)[:, None] * places).astype(np.float32)
