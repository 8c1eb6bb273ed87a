"""Duplicates: the fast search finds what comparing every pair finds, and the hash sees the look."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.duplicates import find_duplicates, near_pairs, perceptual_hash
from tests.sdxl_core.data.pictures import file_of, photo


def bits_apart(one: int, other: int) -> int:
    return (one ^ other).bit_count()


@pytest.mark.parametrize("seed", range(4))
def test_hash_of_a_picture_survives_size_and_quality_and_tells_others(seed: int) -> None:
    pixels = photo(300, 400, seed)
    picture = Image.fromarray(pixels)
    own = perceptual_hash(pixels)
    assert 0 <= own < 2**64
    worse = Image.open(io.BytesIO(file_of(picture, "JPEG", quality=30, subsampling=2)))
    assert bits_apart(own, perceptual_hash(np.asarray(worse))) <= 3
    assert bits_apart(own, perceptual_hash(np.asarray(picture.resize((200, 150))))) <= 3
    assert bits_apart(own, perceptual_hash(photo(300, 400, seed + 100))) > 12
    assert bits_apart(own, perceptual_hash(pixels[:, ::-1])) > 12


hashes = st.lists(
    st.builds(
        lambda base, bits: base ^ sum(1 << bit for bit in bits),
        st.sampled_from([0, 2**64 - 1, 0x0123456789ABCDEF]),
        st.sets(st.integers(0, 63), max_size=6),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(hashes, st.integers(0, 6))
def test_near_pairs_are_those_that_comparing_all_finds(values: list[int], distance: int) -> None:
    unique = list(dict.fromkeys(values))
    earlier, later = near_pairs(np.array(unique, np.uint64), distance)
    expected = {
        (i, j)
        for j in range(len(unique))
        for i in range(j)
        if bits_apart(unique[i], unique[j]) <= distance
    }
    assert list(zip(earlier.tolist(), later.tolist(), strict=True)) == sorted(
        expected, key=lambda pair: (pair[1], pair[0])
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(range(8))), max_size=25), st.randoms())
def test_no_two_rows_that_stay_are_duplicates_and_order_does_not_matter(
    rows: list[tuple[int, int]], random: object
) -> None:
    ids = [f"row {index:03d}" for index in range(len(rows))]
    sha = [f"{content:064x}" for content, _ in rows]
    # The same bytes have the same look.
    looks = dict(reversed(rows))
    phash = np.array([0x11 * looks[content] for content, _ in rows], np.uint64)
    found = find_duplicates(ids, sha, phash, near_distance=2)
    lost = set(found.losers.tolist())
    stay = [index for index in range(len(rows)) if index not in lost]
    for place, index in enumerate(stay):
        for other in stay[:place]:
            assert sha[index] != sha[other]
            assert bits_apart(int(phash[index]), int(phash[other])) > 2
    for loser, winner, is_exact in zip(
        found.losers.tolist(), found.winners.tolist(), found.are_exact.tolist(), strict=True
    ):
        assert winner in stay
        assert is_exact <= any(sha[other] == sha[loser] for other in range(loser))
        assert (
            sha[loser] == sha[winner]
            or is_exact
            or (bits_apart(int(phash[loser]), int(phash[winner])) <= 2)
        )
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = find_duplicates(
        [ids[index] for index in shuffled],
        [sha[index] for index in shuffled],
        phash[shuffled],
        near_distance=2,
    )
    assert {shuffled[index] for index in again.losers.tolist()} == lost


def test_without_hashes_of_looks_only_the_same_bytes_are_duplicates() -> None:
    found = find_duplicates([3, 1, 2], ["aa", "aa", "bb"])
    assert found.losers.tolist() == [0]
    assert found.winners.tolist() == [1]
    assert found.are_exact.tolist() == [True]


def test_no_rows_have_no_duplicates() -> None:
    assert len(find_duplicates([], [], np.empty(0, np.uint64)).losers) == 0


def test_plain_pictures_look_alike_and_a_distance_beyond_reason_is_refused() -> None:
    plain = [np.full((90, 60, 3), level, np.uint8) for level in (0, 100, 255)]
    first, *others = map(perceptual_hash, plain)
    assert all(bits_apart(first, other) <= 1 for other in others)
    with pytest.raises(ConfigError, match="0 to 8"):
        find_duplicates([], [], near_distance=20)


def test_near_pairs_among_many_are_found_without_comparing_all() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    copies = hashes[:500] ^ (np.uint64(1) << rng.integers(0, 64, 500, dtype=np.uint64))
    earlier, later = near_pairs(np.concatenate([hashes, copies]), 3)
    assert (earlier.tolist(), later.tolist()) == (
        list(range(500)),
        list(range(100_000, 100_500)),
    )
