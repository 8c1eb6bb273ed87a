from pathlib import Path

import pytest
import torch

from sdxl_core.data.scene_captions import PALETTE, SHAPES
from sdxl_core.nets.presets import TINY
from sdxl_core.nets.tokenizer import PAD_ID_TEXT_1, tokenize
from sdxl_core.training.loop import LoopSettings
from sdxl_core.training.scene_text import TextEncoders, token_embeddings, train_text_encoders


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> TextEncoders:
    work: Path = tmp_path_factory.mktemp("text")
    settings = LoopSettings(num_steps=3, peak_learning_rate=1e-2, autocast_dtype=None)
    torch.manual_seed(0)
    return train_text_encoders(
        TINY, work, settings=settings, num_samples=32, num_layouts=32, batch_size=8
    )


def test_training_the_text_encoders_leaves_all_words_equally_visible(
    encoders: TextEncoders,
) -> None:
    words = [*SHAPES, *PALETTE]
    ids = tokenize(words, pad_id=PAD_ID_TEXT_1).ids_BT[:, 1]
    for table in token_embeddings(encoders.text_1, encoders.text_2):
        spread = table.weight.std(dim=1)
        assert torch.allclose(spread[ids].mean(), spread.mean(), rtol=0.15)
        assert spread[ids].min() > 0.6 * spread.mean()


def test_trained_text_encoders_are_what_float16_will_hold(encoders: TextEncoders) -> None:
    for encoder in (encoders.text_1, encoders.text_2):
        for parameter in encoder.parameters():
            assert torch.equal(parameter, parameter.half().float())
