"""What SDXL takes from its text encoders: penultimate states, and the pooled vector of encoder 2.

Shape suffixes: B prompts, T token positions, D width of the tower, P width of its projection.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sdxl_core.nets.text_encoders import CLIPTextModel, TextTransformer


def encode_text_1(encoder: "CLIPTextModel", ids_BT: torch.Tensor) -> torch.Tensor:
    """Returns the penultimate states of encoder 1, without its final layer norm.

    Args:
        encoder: from ``build_text_1`` or a loaded model.
        ids_BT: int64 token ids padded with 49407, on the encoder's device.

    Returns:
        states_BTD: in the encoder's dtype. Padding is not masked, as in the released models.
    """
    states_BTD: torch.Tensor = encoder(ids_BT, output_hidden_states=True).hidden_states[-2]
    return states_BTD


def encode_text_2(
    encoder: "TextTransformer", ids_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the penultimate states of encoder 2 and its pooled, projected vector.

    The states come out before the last block, with no layer norm. The pooled vector runs through
    the last block and ``ln_final``, is read at the end token (the highest id) and projected.

    Args:
        encoder: from ``build_text_2`` or a loaded model.
        ids_BT: int64 token ids padded with 0, on the encoder's device.

    Returns:
        states_BTD, pooled_BP: both in the encoder's dtype.
    """
    num_blocks = len(encoder.transformer.resblocks)
    output = encoder.forward_intermediates(ids_BT, indices=[num_blocks - 2], output_fmt="NLC")
    return output["text_intermediates"][0], output["text_features"]
