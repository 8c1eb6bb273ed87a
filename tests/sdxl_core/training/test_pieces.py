"""State in pieces: any share of a parameter comes back out of any others."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.contract.errors import WeightsError
from sdxl_core.training.pieces import KINDS, Piece, PieceReader, read_parameters, write_pieces

SHAPES = {"conv.weight": (3, 5, 2), "conv.bias": (7,), "scale": (1,)}


def whole_state() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        kind: {
            name: torch.randn(torch.Size(shape).numel(), generator=generator)
            for name, shape in SHAPES.items()
        }
        for kind in KINDS
    }


def write_shared(folder: Path, cuts: list[float]) -> PieceReader:
    """The state in ``len(cuts) + 1`` files, every parameter cut at these shares of its length."""
    state = whole_state()
    paths = []
    edges = [0.0, *sorted(cuts), 1.0]
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        pieces = []
        for name, flat in state["master"].items():
            start, end = round(low * flat.numel()), round(high * flat.numel())
            if start < end:
                tensors = {kind: state[kind][name][start:end] for kind in KINDS}
                pieces.append(Piece(name=name, start=start, tensors=tensors))
        path = folder / f"{number}.safetensors"
        write_pieces(path, pieces)
        paths.append(path)
    return PieceReader(paths)


@settings(max_examples=20, deadline=None)
@given(
    cuts=st.lists(st.floats(0, 1), max_size=4), start=st.integers(0, 29), length=st.integers(1, 30)
)
def test_any_elements_come_back_from_any_shares(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[float], start: int, length: int
) -> None:
    reader = write_shared(tmp_path_factory.mktemp("pieces"), cuts)
    length = min(length, 30 - start)
    for kind, flats in whole_state().items():
        found = reader.read("conv.weight", kind, start, length)
        assert torch.equal(found, flats["conv.weight"][start : start + length])


def test_whole_parameters_have_their_shapes(tmp_path: Path) -> None:
    found = read_parameters(write_shared(tmp_path, [0.3, 0.5]), SHAPES, kind="average")
    for name, flat in whole_state()["average"].items():
        assert found[name].shape == SHAPES[name]
        assert torch.equal(found[name].flatten(), flat)


def test_elements_that_no_file_has_are_named(tmp_path: Path) -> None:
    reader = write_shared(tmp_path, [0.5])
    alone = PieceReader([tmp_path / "0.safetensors"])
    assert reader.read("conv.weight", "master", 0, 30).numel() == 30
    with pytest.raises(WeightsError, match=r"conv.weight lacks elements 15 to 30"):
        alone.read("conv.weight", "master", 0, 30)
    with pytest.raises(WeightsError, match="2 parameters are missing: other"):
        read_parameters(reader, {"other": (1,), "yet": (2,), **SHAPES}, kind="master")


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    write_shared(tmp_path, [])
    path = tmp_path / "0.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match=r"0\.safetensors: is no file of a training checkpoint"):
        PieceReader([path])
