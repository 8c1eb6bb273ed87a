"""Token ids against open_clip's own call, and what it does not tell: how much was cut."""

import open_clip.tokenizer
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.nets import tokenizer
from sdxl_core.nets.tokenizer import END_ID, PAD_ID_TEXT_1, PAD_ID_TEXT_2, START_ID, tokenize


@given(st.lists(st.text(), max_size=4))
def test_ids_padded_with_zero_are_those_of_open_clip(texts):
    found = tokenize(texts, pad_id=PAD_ID_TEXT_2).ids_BT
    expected = open_clip.tokenizer.tokenize(texts)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


@given(st.text(max_size=400))
def test_the_two_encoders_differ_in_what_stands_after_the_end_token(text):
    first = tokenize([text], pad_id=PAD_ID_TEXT_1).ids_BT[0].tolist()
    second = tokenize([text], pad_id=PAD_ID_TEXT_2).ids_BT[0].tolist()
    num_used = first.index(END_ID) + 1
    assert first[:num_used] == second[:num_used]
    assert set(first[num_used:]) <= {END_ID}


# Ids of the released vocabulary. transformers' tokenizer_2 makes "!" its padding, id 0.
@pytest.mark.parametrize(("text", "token_id"), [("!", 256), ("!!", 748), ("!!!", 995)])
def test_exclamation_mark_is_a_word_and_not_padding(text, token_id):
    assert tokenize([text], pad_id=PAD_ID_TEXT_2).ids_BT[0, :3].tolist() == [
        START_ID,
        token_id,
        END_ID,
    ]


@pytest.mark.parametrize(("num_words", "num_cut"), [(0, 0), (74, 0), (75, 0), (76, 1), (200, 125)])
def test_prompt_longer_than_75_tokens_is_cut_and_says_by_how_much(num_words, num_cut):
    tokens = tokenize(["cat " * num_words], pad_id=PAD_ID_TEXT_1)
    assert tokens.num_tokens_B == [num_words + 2]
    assert tokens.num_cut_B == [num_cut]
    ids = tokens.ids_BT[0].tolist()
    assert len(ids) == 77
    assert (ids[0], ids[min(num_words, 75) + 1]) == (START_ID, END_ID)


def test_no_texts_give_no_rows():
    tokens = tokenize([], pad_id=PAD_ID_TEXT_1)
    assert tokens.ids_BT.shape == (0, 77)
    assert tokens.num_tokens_B == []


def test_memory_of_words_is_emptied_when_it_is_full(monkeypatch):
    monkeypatch.setattr(tokenizer, "_MAX_REMEMBERED_WORDS", 10)
    texts = [f"word{letter}x" for letter in "abcdefghijklmnop"]
    before = tokenize(texts, pad_id=0).ids_BT
    assert len(tokenizer._tokenizer().cache) <= 10
    assert torch.equal(tokenize(texts, pad_id=0).ids_BT, before)
