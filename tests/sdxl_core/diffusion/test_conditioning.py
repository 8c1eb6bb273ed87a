"""What the networks are told, on real encoders of toy size."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.contract.request import Request
from sdxl_core.diffusion.conditioning import (
    TEXT_BATCH,
    TextPair,
    condition,
    encode_pairs,
    negative_pair,
    positive_pair,
    time_ids,
)
from tests.micro_models import micro_model

BASE, REFINER = micro_model("base"), micro_model("refiner")
SIZES = {
    "original_height": 1333,
    "original_width": 777,
    "crop_top": 12,
    "crop_left": 40,
    "target_height": 1024,
    "target_width": 512,
}
NEGATIVE_SIZES = {
    "negative_original_height": 300,
    "negative_original_width": 500,
    "negative_target_height": 128,
    "negative_target_width": 256,
}


def encode(model, text_1: str, text_2: str | None = None):
    return encode_pairs(model, [TextPair(text_1, text_1 if text_2 is None else text_2)])[0]


def test_base_ids_are_original_crop_target_heights_before_widths():
    ids_I = time_ids(Request(prompt="", **SIZES), BASE)

    assert ids_I.tolist() == [1333, 777, 12, 40, 1024, 512]


def test_refiner_ids_have_the_aesthetic_score_in_place_of_the_target():
    request = Request(prompt="", **SIZES, aesthetic_score=7.5, negative_aesthetic_score=1.25)

    assert time_ids(request, REFINER).tolist() == [1333, 777, 12, 40, 7.5]
    assert time_ids(request, REFINER, negative=True).tolist() == [1333, 777, 12, 40, 1.25]


def test_ids_of_a_row_that_names_no_sizes_are_its_own_size_uncropped():
    assert time_ids(Request(prompt="", height=72, width=64), BASE).tolist() == [
        72,
        64,
        0,
        0,
        72,
        64,
    ]


def test_negative_ids_follow_the_positive_ones_until_they_are_given():
    request = Request(prompt="", **SIZES)

    assert torch.equal(time_ids(request, BASE, negative=True), time_ids(request, BASE))


def test_negative_ids_that_are_given_replace_all_of_the_positive_ones():
    request = Request(prompt="", **SIZES, **NEGATIVE_SIZES)

    assert time_ids(request, BASE, negative=True).tolist() == [300, 500, 0, 0, 128, 256]
    assert time_ids(request, REFINER, negative=True).tolist() == [300, 500, 0, 0, 2.5]
    assert time_ids(request, BASE).tolist() == list(SIZES.values())


def test_ids_stay_float32_beside_half_precision_text():
    # bfloat16 has 1328 and 1336, and nothing between.
    half = dataclasses.replace(
        encode(BASE, "a fox"), context_TD=torch.zeros(77, 40, dtype=torch.bfloat16)
    )

    positive, negative = condition(Request(prompt="", **SIZES), BASE, half, None)

    assert negative is not None
    for side in (positive, negative):
        assert side.time_ids_I.dtype == torch.float32
        assert side.time_ids_I[0] == 1333
    assert negative.context_TD.dtype == torch.bfloat16


def test_base_without_a_negative_prompt_moves_away_from_zeros():
    request = Request(prompt="a fox")
    assert negative_pair(request, BASE) is None

    _, negative = condition(request, BASE, encode(BASE, "a fox"), None)

    assert negative is not None
    assert not negative.context_TD.any()
    assert not negative.pooled_P.any()


def test_an_empty_negative_prompt_is_encoded_and_differs_from_zeros():
    request = Request(prompt="a fox", negative_prompt="")
    pair = negative_pair(request, BASE)
    assert pair == TextPair("", "")

    _, negative = condition(request, BASE, encode(BASE, "a fox"), encode(BASE, ""))

    assert negative is not None
    assert negative.context_TD.abs().mean() > 0.1


def test_refiner_without_a_negative_prompt_moves_away_from_the_encoded_empty_text():
    assert negative_pair(Request(prompt="a fox"), REFINER) == TextPair("", "")


@pytest.mark.parametrize(
    ("given_texts", "base_positive", "base_negative", "refiner_negative"),
    [
        ({"negative_prompt": "n"}, ("p", "p"), ("n", "n"), "n"),
        ({"negative_prompt_2": "m"}, ("p", "p"), ("", "m"), ""),
        ({"prompt_2": "q", "negative_prompt": "n", "negative_prompt_2": "m"},
         ("p", "q"), ("n", "m"), "n"),
        ({"prompt_2": "", "negative_prompt": "n", "negative_prompt_2": ""},
         ("p", ""), ("n", ""), "n"),
    ],
)  # fmt: skip
def test_each_encoder_reads_its_own_text_and_the_refiner_only_the_first(
    given_texts, base_positive, base_negative, refiner_negative
):
    request = Request(prompt="p", **given_texts)

    assert positive_pair(request, BASE) == TextPair(*base_positive)
    assert negative_pair(request, BASE) == TextPair(*base_negative)
    assert positive_pair(request, REFINER) == TextPair("", "p")
    assert negative_pair(request, REFINER) == TextPair("", refiner_negative)


def test_context_is_encoder_1_beside_encoder_2_and_pooled_is_encoder_2s():
    both, second = encode(BASE, "a fox", "a box"), encode(BASE, "a hat", "a box")
    width_1 = BASE.preset.text_1.width

    assert both.context_TD.shape == (77, BASE.preset.unet.cross_attention_dim)
    assert torch.equal(both.context_TD[:, width_1:], second.context_TD[:, width_1:])
    assert not torch.equal(both.context_TD[:, :width_1], second.context_TD[:, :width_1])
    assert torch.equal(both.pooled_P, second.pooled_P)


def test_a_literal_exclamation_mark_is_read_by_both_encoders():
    # transformers' tokenizer_2 would make it padding, and "a fox!" the same as "a fox".
    plain, exclaimed = encode(BASE, "a fox"), encode(BASE, "a fox!")
    width_1 = BASE.preset.text_1.width

    assert not torch.equal(plain.context_TD[:, :width_1], exclaimed.context_TD[:, :width_1])
    assert not torch.equal(plain.context_TD[:, width_1:], exclaimed.context_TD[:, width_1:])
    assert not torch.equal(plain.pooled_P, exclaimed.pooled_P)


def test_an_unguided_row_has_no_negative_side():
    request = Request(prompt="a fox", guidance_scale=1.0, negative_prompt="blurry")

    assert condition(request, BASE, encode(BASE, "a fox"), None)[1] is None


@pytest.mark.parametrize(("num_words", "num_cut"), [(3, 0), (75, 0), (76, 1), (100, 25)])
def test_tokens_that_do_not_fit_are_counted(num_words, num_cut):
    words = " ".join(["fox"] * num_words)

    assert encode(BASE, words, "").num_tokens_cut == num_cut
    assert encode(BASE, "", words).num_tokens_cut == num_cut
    assert encode(REFINER, words, "").num_tokens_cut == 0  # it does not read the first text


pairs = st.builds(TextPair, *[st.sampled_from(["", "a fox", "a red box!", "word " * 90])] * 2)


@settings(max_examples=10)
@given(some=st.lists(pairs, min_size=1, max_size=2 * TEXT_BATCH + 3))
def test_a_texts_states_have_the_same_bits_whatever_it_is_encoded_with(some):
    for pair, together in zip(some, encode_pairs(BASE, some), strict=True):
        (alone,) = encode_pairs(BASE, [pair])
        assert torch.equal(together.context_TD, alone.context_TD)
        assert torch.equal(together.pooled_P, alone.pooled_P)
        assert together.num_tokens_cut == alone.num_tokens_cut


def test_no_texts_are_encoded_to_no_states():
    assert encode_pairs(BASE, []) == []
