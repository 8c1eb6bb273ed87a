"""Networks that are compiled for each of many sizes."""

import functools

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from sdxl_core.training.compilation import compile_for_sizes


class Halving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images).sigmoid()


def test_every_size_has_a_graph_of_its_own_and_none_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced = functools.partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", traced)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    torch.compiler.reset()
    counters.clear()
    network, sizes = Halving(), [(8, 8 + width) for width in range(20)]
    plain = [network(torch.ones(1, 3, *size)) for size in sizes]
    compile_for_sizes(network, len(sizes))
    for _ in range(2):
        for size, expected in zip(sizes, plain, strict=True):
            assert torch.equal(network(torch.ones(1, 3, *size)), expected)
            with torch.no_grad():
                network(torch.ones(1, 3, *size))
    assert counters["stats"]["unique_graphs"] == 2 * len(sizes)
    assert not counters["unimplemented"]
