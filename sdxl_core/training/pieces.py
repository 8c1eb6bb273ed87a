"""Training state in pieces: a worker's share of every parameter, and files that any share of it can
be put together from again.

A parameter is laid out flat. A worker that shards its state holds elements ``start`` to
``start + num`` of it, of each kind: the float32 weights (``master``), Adam's two moments
(``exp_avg``, ``exp_avg_sq``) and the running mean of the weights (``average``). A file of pieces
says of each parameter where its elements begin, so workers of another number, or of another way to
shard, find theirs in the same files. Nothing but safetensors is written or read.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdxl_core.contract.errors import WeightsError

KINDS = ("master", "exp_avg", "exp_avg_sq", "average")

_METADATA_KEY = "starts"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Elements ``start`` and following of one flat parameter.

    Args:
        name: of the parameter in its network.
        start: place of the first element, >= 0.
        tensors: by kind, float32, all of one length, 1-d.
    """

    name: str
    start: int
    tensors: Mapping[str, Tensor]

    @property
    def num_elements(self) -> int:
        """How many elements there are."""
        return next(iter(self.tensors.values())).numel()


def write_pieces(path: Path, pieces: Iterable[Piece]) -> None:
    """Writes pieces to a file; those of one parameter must be one piece.

    Args:
        path: replaced if it is there.
        pieces: with tensors on any device.
    """
    pieces = list(pieces)
    starts = {piece.name: piece.start for piece in pieces}
    assert len(starts) == len(pieces), "a parameter has two pieces in one file"
    tensors = {
        f"{kind}/{piece.name}": tensor.detach().cpu().contiguous()
        for piece in pieces
        for kind, tensor in piece.tensors.items()
    }
    save_file(tensors, path, metadata={_METADATA_KEY: json.dumps(starts)})


class PieceReader:
    """The state of all workers, from their files.

    Args:
        paths: local files that ``write_pieces`` wrote, of one checkpoint.

    Raises:
        WeightsError: a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [_open(path) for path in paths]
        self._places: dict[str, list[tuple[int, int, int]]] = {}  # start, end, file
        for number, (_, starts, lengths) in enumerate(self._files):
            for name, start in starts.items():
                self._places.setdefault(name, []).append((start, start + lengths[name], number))

    @property
    def names(self) -> set[str]:
        """Of all parameters."""
        return set(self._places)

    def read(self, name: str, kind: str, start: int, num_elements: int) -> Tensor:
        """Elements ``start`` to ``start + num_elements`` of a flat parameter, float32 on the CPU.

        Raises:
            WeightsError: some of them are in no file.
        """
        end = start + num_elements
        found = torch.empty(num_elements)
        done = start
        for first, last, number in sorted(self._places.get(name, [])):
            low, high = max(first, done), min(last, end)
            if low > done or low >= high:
                continue
            stored = self._files[number][0].get_slice(f"{kind}/{name}")
            found[low - start : high - start] = stored[low - first : high - first]
            done = high
        if done < end:
            raise WeightsError(
                f"checkpoint: {kind} of {name} lacks elements {done} to {end}; it was written for "
                "another network, or a file is missing"
            )
        return found


def read_parameters(
    reader: PieceReader, shapes: Mapping[str, Sequence[int]], *, kind: str
) -> dict[str, Tensor]:
    """Whole parameters, float32 on the CPU.

    Args:
        reader: of the checkpoint.
        shapes: of all parameters, by name.
        kind: ``average`` or ``master``.

    Raises:
        WeightsError: parameters are missing.
    """
    missing = sorted(set(shapes) - reader.names)
    if missing:
        raise WeightsError(
            f"checkpoint: {len(missing)} parameters are missing: {', '.join(missing[:5])}"
        )
    return {
        name: reader.read(name, kind, 0, torch.Size(shape).numel()).view(tuple(shape))
        for name, shape in shapes.items()
    }


def _open(path: Path) -> tuple[safe_open, dict[str, int], dict[str, int]]:
    """A file of pieces, with start and length of each parameter."""
    try:
        file = safe_open(path, framework="pt")
        starts: dict[str, int] = json.loads(file.metadata()[_METADATA_KEY])
        lengths = {name: file.get_slice(f"master/{name}").get_shape()[0] for name in starts}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: is no file of a training checkpoint: {error}") from error
    return file, starts, lengths
