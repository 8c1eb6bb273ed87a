"""The cache before the encoders, on real encoders of toy size."""

import pytest
import torch

from sdxl_core.contract.request import Request
from sdxl_core.diffusion.text_stage import TextStage
from tests.micro_models import micro_model

MODELS = {"base": micro_model("base"), "refiner": micro_model("refiner")}


def row(prompt: str = "a fox", **values) -> Request:
    return Request(prompt=prompt, **values)


def bytes_of_one_pair() -> int:
    (texts,) = TextStage(MODELS).encode([row()])
    states, _ = texts["base"]
    return states.context_TD.nbytes + states.pooled_P.nbytes


def test_equal_texts_are_encoded_once_and_share_their_states():
    stage = TextStage(MODELS)

    first, second = stage.encode([row(seed=1), row(seed=2)])
    (later,) = stage.encode([row(seed=3)])

    assert stage.num_encoded == 1
    assert first["base"][0] is second["base"][0] is later["base"][0]


def test_a_row_gets_states_for_the_networks_that_it_uses():
    stage = TextStage(MODELS)

    plain, refined = stage.encode([row(), row(refiner=True)])

    assert set(plain) == {"base"}
    assert set(refined) == {"base", "refiner"}
    # The prompt for both networks, and the refiner's encoded "".
    assert stage.num_encoded == 3


def test_negative_states_are_none_for_zeros_and_for_unguided_rows():
    stage = TextStage(MODELS)

    zeros, empty, unguided = stage.encode(
        [row(), row(negative_prompt=""), row(negative_prompt="blurry", guidance_scale=1.0)]
    )

    assert zeros["base"][1] is None
    assert empty["base"][1] is not None
    assert unguided["base"][1] is None
    assert stage.num_encoded == 2  # nobody reads "blurry"


def test_a_text_on_both_sides_is_encoded_once():
    stage = TextStage(MODELS)

    (texts,) = stage.encode([row("a fox", negative_prompt="a fox")])

    assert texts["base"][0] is texts["base"][1]
    assert stage.num_encoded == 1


def test_the_cache_keeps_what_was_used_last_and_stays_within_its_bound():
    stage = TextStage(MODELS, max_cache_bytes=2 * bytes_of_one_pair())

    stage.encode([row("one"), row("two")])
    stage.encode([row("one")])
    stage.encode([row("three")])  # "two" goes
    assert stage.num_encoded == 3
    stage.encode([row("one"), row("three")])
    assert stage.num_encoded == 3
    stage.encode([row("two")])
    assert stage.num_encoded == 4


def test_a_table_larger_than_the_cache_is_still_answered_whole():
    stage = TextStage(MODELS, max_cache_bytes=bytes_of_one_pair())
    prompts = [f"picture {number}" for number in range(12)]

    texts = stage.encode([row(prompt) for prompt in prompts])

    for prompt, found in zip(prompts, texts, strict=True):
        (alone,) = TextStage(MODELS).encode([row(prompt)])
        assert torch.equal(found["base"][0].context_TD, alone["base"][0].context_TD)
        assert torch.equal(found["base"][0].pooled_P, alone["base"][0].pooled_P)


def test_cut_tokens_are_reported_with_the_states():
    (texts,) = TextStage(MODELS).encode([row("fox " * 90, refiner=True)])

    assert texts["base"][0].num_tokens_cut == 15
    assert texts["refiner"][0].num_tokens_cut == 15


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "   ",
        "\ud83e",
        "\u202e\ufffd\u200b",
        "🦊" * 100,
        "<|endoftext|> fox",
        "a" * 9_000,
        "🇯🇵 狐",
    ],
)
def test_no_text_is_too_odd_to_be_encoded(prompt):
    request = row()
    # Past the checks of the prompt table, which refuse some of these.
    object.__setattr__(request, "prompt", prompt)

    (texts,) = TextStage(MODELS).encode([request])

    states, _ = texts["base"]
    assert torch.isfinite(states.context_TD).all()
    assert torch.isfinite(states.pooled_P).all()
