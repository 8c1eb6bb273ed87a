"""Turns prompts into token ids with open_clip's tokenizer, for both encoders.

The two encoders share one vocabulary and differ only in the id that fills the sequence: 49407 (the
end token) for encoder 1 and 0 for encoder 2. A literal "!" is id 256 as in training; transformers'
tokenizer_2 would turn it into the padding id 0.

Shape suffixes: B prompts, T token positions (77).
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

NUM_POSITIONS = 77
START_ID = 49406
END_ID = 49407
PAD_ID_TEXT_1 = END_ID
PAD_ID_TEXT_2 = 0

# open_clip remembers the split of every word it has met, for ever. A table of a million prompts
# meets a lot of words, so the memory is emptied once it holds this many.
_MAX_REMEMBERED_WORDS = 200_000


class Tokens(NamedTuple):
    """Ids of one batch of prompts, and how long each prompt was before it was cut."""

    ids_BT: torch.Tensor
    """int64, 77 positions: start token, at most 75 prompt tokens, end token, padding."""
    num_tokens_B: list[int]
    """Tokens of the whole prompt with its start and end token; above 77 the prompt was cut."""

    @property
    def num_cut_B(self) -> list[int]:
        """Prompt tokens that did not fit; 0 when the whole prompt was used."""
        return [max(0, num_tokens - NUM_POSITIONS) for num_tokens in self.num_tokens_B]


def tokenize(texts: Sequence[str], *, pad_id: int) -> Tokens:
    """Returns the ids that an encoder takes.

    Args:
        texts: prompts of any length; "" is the empty prompt.
        pad_id: ``PAD_ID_TEXT_1`` or ``PAD_ID_TEXT_2``.

    Returns:
        The ids on the CPU, and the length of every prompt. What is beyond 75 tokens is cut and
        the end token stays last.
    """
    tokenizer = _tokenizer()
    ids_BT = torch.full((len(texts), NUM_POSITIONS), pad_id, dtype=torch.int64)
    num_tokens_B = []
    for row, text in enumerate(texts):
        prompt_ids = tokenizer.encode(text)
        kept_ids = [START_ID, *prompt_ids[: NUM_POSITIONS - 2], END_ID]
        ids_BT[row, : len(kept_ids)] = torch.tensor(kept_ids)
        num_tokens_B.append(len(prompt_ids) + 2)
    if len(tokenizer.cache) > _MAX_REMEMBERED_WORDS:
        _tokenizer.cache_clear()
    return Tokens(ids_BT, num_tokens_B)


@functools.cache
def _tokenizer() -> "SimpleTokenizer":
    # Late: most processes that know of prompts leave their tokens to others, and open_clip takes
    # seconds to import.
    declare_missing_torchvision_ops()
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
