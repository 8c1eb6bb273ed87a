"""The memory layout of a UNet's activations.

cuDNN's convolutions in bfloat16 work on channels-last tensors, and take that layout when their
input or their weights have it. Launchers that lay all weights out flat (DeepSpeed) refuse weights
in that layout, or lose it; activations can have it all the same.
"""

from typing import Any

import torch
from torch import nn

# Where diffusers' UNet convolves. Between them its transformers hand on the usual layout.
_CONVOLVING = ("ResnetBlock2D", "Downsample2D", "Upsample2D")


def use_channels_last_activations(unet: nn.Module) -> None:
    """Makes the 3x3 convolutions of all blocks of the UNet work on channels-last activations; the
    weights stay as they are laid out. Doing it twice is doing it once.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
    """
    for module in unet.modules():
        if (
            type(module).__name__ in _CONVOLVING
            and _relay not in module._forward_pre_hooks.values()
        ):
            module.register_forward_pre_hook(_relay)


def _relay(_block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    first, *others = inputs
    return (first.contiguous(memory_format=torch.channels_last), *others)
