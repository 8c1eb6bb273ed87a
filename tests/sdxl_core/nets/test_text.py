"""Text states against the other library's implementation, with the same weights."""

import copy

import pytest
import torch
from open_clip.transformer import QuickGELU, TextTransformer
from transformers import CLIPTextModelWithProjection

from sdxl_core.nets.build import clip_text_config
from sdxl_core.nets.layouts import diffusers_slots, network_shapes
from sdxl_core.nets.presets import TINY
from sdxl_core.nets.text import encode_text_1, encode_text_2
from sdxl_core.nets.tokenizer import PAD_ID_TEXT_1, PAD_ID_TEXT_2, tokenize

PROMPTS = ["", "a red circle", "a big blue square! on the left " * 20]


@pytest.fixture(scope="module", autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def stored_tensors(component, network):
    slots = diffusers_slots(network_shapes({component: network}))[component]
    tensors = network.state_dict()
    return {s.stored_name: s.view(tensors[s.network_name]) for s in slots}


def test_encoder_2_gives_the_states_and_the_pooled_vector_of_transformers(base):
    oracle = CLIPTextModelWithProjection(clip_text_config(TINY.text_2)).eval()
    oracle.load_state_dict(stored_tensors("text_encoder_2", base.text_2))
    ids_BT = tokenize(PROMPTS, pad_id=PAD_ID_TEXT_2).ids_BT

    states_BTD, pooled_BP = encode_text_2(base.text_2, ids_BT)

    expected = oracle(ids_BT, output_hidden_states=True)
    torch.testing.assert_close(states_BTD, expected.hidden_states[-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled_BP, expected.text_embeds, atol=1e-5, rtol=0)
    assert not torch.allclose(states_BTD, expected.hidden_states[-1], atol=1e-2)


def test_encoder_1_gives_the_penultimate_states_of_open_clip_with_quick_gelu(base):
    oracle = TextTransformer(
        width=TINY.text_1.width,
        heads=TINY.text_1.num_heads,
        layers=TINY.text_1.num_layers,
        output_dim=None,
        act_layer=QuickGELU,
    ).eval()
    ours = stored_tensors("text_encoder", base.text_1)
    slots = diffusers_slots(network_shapes({"text_encoder_2": oracle}))["text_encoder_2"]
    assert sorted(s.stored_name for s in slots) == sorted(ours)
    for slot in slots:
        slot.view(oracle.state_dict()[slot.network_name]).copy_(ours[slot.stored_name])
    ids_BT = tokenize(PROMPTS, pad_id=PAD_ID_TEXT_1).ids_BT

    states_BTD = encode_text_1(base.text_1, ids_BT)

    expected_BTD, _ = encode_text_2(oracle, ids_BT)
    torch.testing.assert_close(states_BTD, expected_BTD, atol=1e-5, rtol=0)


@pytest.mark.parametrize("encoder", ["text_1", "text_2"])
def test_padding_does_not_reach_what_stands_before_it(base, encoder):
    def states(pad_id):
        ids_BT = tokenize(["a red circle"], pad_id=pad_id).ids_BT
        if encoder == "text_1":
            return encode_text_1(base.text_1, ids_BT), None
        return encode_text_2(base.text_2, ids_BT)

    (first_BTD, first_BP), (second_BTD, second_BP) = states(0), states(49407)
    num_tokens = 5
    torch.testing.assert_close(first_BTD[:, :num_tokens], second_BTD[:, :num_tokens])
    assert not torch.allclose(first_BTD[:, num_tokens:], second_BTD[:, num_tokens:])
    if first_BP is not None:  # read at the first of the equal highest ids, whatever pads
        torch.testing.assert_close(first_BP, second_BP)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_encoders_stay_close_to_float32(base, dtype):
    copies = [copy.deepcopy(base.text_1).to(dtype), copy.deepcopy(base.text_2).to(dtype)]
    ids_BT = tokenize(PROMPTS, pad_id=PAD_ID_TEXT_2).ids_BT
    expected = [encode_text_1(base.text_1, ids_BT), *encode_text_2(base.text_2, ids_BT)]

    found = [encode_text_1(copies[0], ids_BT), *encode_text_2(copies[1], ids_BT)]

    for half, full in zip(found, expected, strict=True):
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.05)
