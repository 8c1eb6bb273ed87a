"""The exported tokenizer folders, read by transformers."""

import open_clip.tokenizer
import pytest
from transformers import CLIPTokenizer

from sdxl_core.nets.tokenizer import END_ID, PAD_ID_TEXT_1, PAD_ID_TEXT_2, START_ID, tokenize
from sdxl_core.nets.tokenizer_files import tokenizer_files

PROMPTS = [
    "",
    "a red circle, left of 3 blue squares",
    "Café déjà-vu — naïve 日本 🙂 it's",
    "word " * 100,
]


@pytest.fixture(
    scope="module", params=[("tokenizer", PAD_ID_TEXT_1), ("tokenizer_2", PAD_ID_TEXT_2)]
)
def tokenizer_and_pad(request, tmp_path_factory):
    name, pad_id = request.param
    folder = tmp_path_factory.mktemp(name)
    for file_name, text in tokenizer_files(name).items():
        (folder / file_name).write_text(text, encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True), pad_id


def test_transformers_reads_the_special_tokens_of_the_released_folders(tokenizer_and_pad):
    tokenizer, pad_id = tokenizer_and_pad
    assert tokenizer.bos_token_id == START_ID
    assert tokenizer.eos_token_id == END_ID
    assert tokenizer.pad_token_id == pad_id
    assert tokenizer.model_max_length == 77
    assert len(tokenizer) == 49408


@pytest.mark.parametrize("prompt", PROMPTS)
def test_transformers_gives_our_ids_where_no_exclamation_mark_stands(tokenizer_and_pad, prompt):
    tokenizer, pad_id = tokenizer_and_pad
    found = tokenizer(prompt, padding="max_length", truncation=True, max_length=77).input_ids
    assert found == tokenize([prompt], pad_id=pad_id).ids_BT[0].tolist()


def test_vocabulary_is_that_of_open_clip(tokenizer_and_pad):
    tokenizer, _ = tokenizer_and_pad
    ours = open_clip.tokenizer.SimpleTokenizer().encoder
    theirs = tokenizer.get_vocab()
    assert {n: i for n, i in ours.items() if i < START_ID} == {
        n: i for n, i in theirs.items() if i < START_ID
    }
