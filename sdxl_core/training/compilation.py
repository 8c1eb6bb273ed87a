"""``torch.compile`` for networks that meet many sizes of pictures."""

import torch
import torch._dynamo
from torch import nn

# A size is compiled for training and, where held-out samples are measured, once more without
# gradients. Some room, so that a guard of torch's own does not use the last one.
_GRAPHS_OF_A_SIZE, _SPARE_GRAPHS = 2, 8


def compile_for_sizes(network: nn.Module, num_sizes: int) -> None:
    """Compiles the network when it is first called with each size, with the size as a constant.

    By itself torch would go over to graphs for any size after the first one, which are slower, and
    would give up compiling after eight, without a word.

    Args:
        network: whose calls are compiled from now on.
        num_sizes: shapes of input that it will meet.
    """
    needed = _GRAPHS_OF_A_SIZE * num_sizes + _SPARE_GRAPHS
    settings = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, needed)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, 4 * needed)
    network.compile(dynamic=False)
