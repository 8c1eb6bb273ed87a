"""The ``tokenizer/`` and ``tokenizer_2/`` folders of the diffusers layout.

They are made from the vocabulary that open_clip ships, so that an export needs no download. The two
folders differ in their padding token alone, as in the released models. This project itself never
reads them: ``tokenizer.py`` has the reason.
"""

import functools
import gzip
import importlib
import json
from types import ModuleType
from typing import Any

from sdxl_core.nets.tokenizer import END_ID, NUM_POSITIONS, START_ID
from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
PAD_TOKENS = {"tokenizer": END_TOKEN, "tokenizer_2": "!"}
"""Padding token by folder."""

_NUM_MERGES = 49152 - 256 - 2


def tokenizer_files(folder: str) -> dict[str, str]:
    """Returns the files of a tokenizer folder by name.

    Args:
        folder: ``tokenizer`` or ``tokenizer_2``.
    """
    special_tokens = {
        "bos_token": _special(START_TOKEN),
        "eos_token": _special(END_TOKEN),
        "pad_token": PAD_TOKENS[folder],
        "unk_token": _special(END_TOKEN),
    }
    config = {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **_special(START_TOKEN)},
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **_special(END_TOKEN)},
        "errors": "replace",
        "model_max_length": NUM_POSITIONS,
        "pad_token": PAD_TOKENS[folder],
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **_special(END_TOKEN)},
    }
    return {
        "merges.txt": "\n".join(["#version: 0.2", *_merges(), ""]),
        "special_tokens_map.json": _json(special_tokens),
        "tokenizer_config.json": _json(config),
        "vocab.json": _vocabulary_json(),
    }


def _open_clip() -> ModuleType:
    """Its tokenizer's module. Late: it takes seconds to import and only an export needs it."""
    declare_missing_torchvision_ops()
    return importlib.import_module("open_clip.tokenizer")


@functools.cache
def _merges() -> tuple[str, ...]:
    """The pairs that the tokenizer joins, in order of priority."""
    with gzip.open(_open_clip().default_bpe(), "rt", encoding="utf-8") as file:
        return tuple(file.read().split("\n")[1 : _NUM_MERGES + 1])


@functools.cache
def _vocabulary_json() -> str:
    """Token ids: 256 bytes, the same at the end of a word, the merges, the two special tokens."""
    letters = list(_open_clip().bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in _merges()]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    return json.dumps({**vocabulary, START_TOKEN: START_ID, END_TOKEN: END_ID}, ensure_ascii=False)


def _special(token: str) -> dict[str, Any]:
    return {
        "content": token,
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
