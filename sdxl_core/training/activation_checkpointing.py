"""Activation checkpointing of as many blocks as memory asks for, and no more.

A block that is checkpointed keeps its input alone and computes the rest again in the backward pass.
diffusers switches it on for all blocks, which costs a third more work; with a share of them a card
is filled and the rest of the work saved.
"""

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from sdxl_core.contract.errors import ConfigError

# What diffusers' UNet hands to its checkpointing function, by class. At 1024 px both kinds give
# about as many bytes back for each operation that is done again: neither is to be taken first.
_BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")


def checkpoint_blocks(unet: nn.Module, *, share: float = 1.0) -> int:
    """Makes a share of the blocks compute their activations again in the backward pass.

    The gradients stay what they are. Which blocks were checkpointed before is forgotten.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        share: of its blocks, spread evenly over them, 0 to 1.

    Returns:
        How many blocks are checkpointed.

    Raises:
        ConfigError: ``share`` is out of range.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"checkpointed share: found {share}, expected 0 (no block) to 1 (all)")
    blocks = [module for module in unet.modules() if type(module).__name__ in _BLOCKS]
    chosen = {
        id(block): _draws_random_numbers(block)
        for number, block in enumerate(blocks)
        if int((number + 1) * share) > int(number * share)
    }

    def run(block: nn.Module, *inputs: Any) -> Any:
        if id(block) not in chosen:
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=chosen[id(block)])

    network: Any = unet
    if chosen:
        network.enable_gradient_checkpointing(run)
    else:
        network.disable_gradient_checkpointing()
    return len(chosen)


def _draws_random_numbers(block: nn.Module) -> bool:
    """Whether computing it again needs the generator as it was: SDXL's blocks have no dropout."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in block.modules())
