"""From a request to what the networks are told: text states and the numbers that stand for sizes
and crops.

The rules are those of the released models. The base gets both encoders side by side and zeros for
an absent negative prompt; the refiner gets encoder 2 alone, an encoded "" instead, and an aesthetic
score in place of the target size.
"""

# Shapes: B texts, T=77 tokens, D text width (both encoders), P pooled width, I time ids.

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from sdxl_core.contract.prompts import Request
from sdxl_core.diffusion.tasks import Conditioning
from sdxl_core.nets.model import SdxlModel
from sdxl_core.nets.text import encode_text_1, encode_text_2
from sdxl_core.nets.tokenizer import PAD_ID_TEXT_1, PAD_ID_TEXT_2, tokenize

# Texts are always encoded this many at a time, the last call padded, so that a prompt's states have
# the same bits whatever it is encoded with.
TEXT_BATCH = 8

_Pair = tuple[int | None, int | None]


@dataclasses.dataclass(frozen=True)
class TextPair:
    """What the two encoders read. Equal pairs have equal states: pairs are the unit of caching."""

    text_1: str
    text_2: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextStates:
    """One pair's states: ``context_TD`` for cross-attention, ``pooled_P``; and how many tokens did
    not fit.
    """

    context_TD: Tensor
    pooled_P: Tensor
    num_tokens_cut: int


def positive_pair(request: Request, model: SdxlModel) -> TextPair:
    """The texts of the prompt side. The refiner reads ``prompt`` alone, as in diffusers.

    A ``prompt_2`` of "" is the empty text; diffusers would take ``prompt`` in its place.
    """
    if model.kind == "refiner":
        return TextPair("", request.prompt)
    return TextPair(
        request.prompt, request.prompt if request.prompt_2 is None else request.prompt_2
    )


def negative_pair(request: Request, model: SdxlModel) -> TextPair | None:
    """The texts of the negative side, or None where it is zeros (base without a negative prompt).

    A ``negative_prompt_2`` alone goes with an empty ``negative_prompt``; diffusers would ignore it.
    """
    first, second = request.negative_prompt, request.negative_prompt_2
    if first is None and second is None and model.force_zeros_for_empty_prompt:
        return None
    first = first or ""
    if model.kind == "refiner":
        return TextPair("", first)
    return TextPair(first, first if second is None else second)


@torch.inference_mode()
def encode_pairs(model: SdxlModel, pairs: Sequence[TextPair]) -> list[TextStates]:
    """Encodes text pairs with a model's encoders.

    Returns:
        One ``TextStates`` per pair, tensors on the CPU in the encoders' dtype. The context is the
        penultimate states of encoder 1, then those of encoder 2, side by side; the pooled state is
        encoder 2's.
    """
    states: list[TextStates] = []
    for first in range(0, len(pairs), TEXT_BATCH):
        some = list(pairs[first : first + TEXT_BATCH])
        padded = some + [some[-1]] * (TEXT_BATCH - len(some))
        states.extend(_encode_batch(model, padded)[: len(some)])
    return states


def _encode_batch(model: SdxlModel, pairs: Sequence[TextPair]) -> list[TextStates]:
    device = next(model.text_2.parameters()).device
    tokens_2 = tokenize([pair.text_2 for pair in pairs], pad_id=PAD_ID_TEXT_2)
    num_cut_B = tokens_2.num_cut_B
    context_BTD, pooled_BP = encode_text_2(model.text_2, tokens_2.ids_BT.to(device))
    if model.text_1 is not None:
        tokens_1 = tokenize([pair.text_1 for pair in pairs], pad_id=PAD_ID_TEXT_1)
        num_cut_B = [max(pair) for pair in zip(num_cut_B, tokens_1.num_cut_B, strict=True)]
        states_1_BTD = encode_text_1(model.text_1, tokens_1.ids_BT.to(device))
        context_BTD = torch.cat([states_1_BTD, context_BTD], dim=-1)
    return [
        TextStates(context_TD=context_TD.clone(), pooled_P=pooled_P.clone(), num_tokens_cut=num_cut)
        for context_TD, pooled_P, num_cut in zip(
            context_BTD.cpu(), pooled_BP.cpu(), num_cut_B, strict=True
        )
    ]


def time_ids(request: Request, model: SdxlModel, *, negative: bool = False) -> Tensor:
    """Sizes, crop and target (base) or aesthetic score (refiner), (I,) float32, heights before
    widths.

    The negative side has its own numbers only when all of its original and target size are given;
    otherwise they equal the positive side's, the crop too. (diffusers does the same, but for its
    refiner, whose negative crop is (0, 0) unless it is given.)
    """
    original: _Pair = (request.original_height, request.original_width)
    crop: _Pair = (request.crop_top, request.crop_left)
    target: _Pair = (request.target_height, request.target_width)
    score = request.negative_aesthetic_score if negative else request.aesthetic_score
    if negative and request.negative_original_height is not None:
        # A request has all six or none.
        original = (request.negative_original_height, request.negative_original_width)
        crop = (request.negative_crop_top, request.negative_crop_left)
        target = (request.negative_target_height, request.negative_target_width)
    last = target if model.kind == "base" else (score,)
    return torch.tensor([*original, *crop, *last], dtype=torch.float32)


def condition(
    request: Request, model: SdxlModel, positive: TextStates, negative: TextStates | None
) -> tuple[Conditioning, Conditioning | None]:
    """Puts text states and numbers together for both sides; the negative side only if the row is
    guided.

    Args:
        request: The row.
        model: Base or refiner; decides which numbers are used.
        positive: States of ``positive_pair``.
        negative: States of ``negative_pair``; None stands for zeros.
    """
    told = Conditioning(
        context_TD=positive.context_TD,
        pooled_P=positive.pooled_P,
        time_ids_I=time_ids(request, model),
    )
    if not request.guided:
        return told, None
    zero_context, zero_pooled = torch.zeros_like(told.context_TD), torch.zeros_like(told.pooled_P)
    return told, Conditioning(
        context_TD=zero_context if negative is None else negative.context_TD,
        pooled_P=zero_pooled if negative is None else negative.pooled_P,
        time_ids_I=time_ids(request, model, negative=True),
    )
