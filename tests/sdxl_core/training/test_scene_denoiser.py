"""What the embedded UNets are fed."""

import re

import pytest
import torch

from sdxl_core.nets.build import build_text_1, build_text_2, build_vae
from sdxl_core.nets.presets import TINY, TINY_REFINER, ModelPreset
from sdxl_core.training.contrastive import ImageTower
from sdxl_core.training.scene_denoiser import (
    draw_batch,
    encode_captions,
    encode_shard,
    hide_words,
)
from sdxl_core.training.scene_latents import encode_scenes
from sdxl_core.training.scene_layout import FIRST_CELL_POSITION
from sdxl_core.training.scene_text import (
    TextEncoders,
    content_scale,
    give_states_unit_scale,
    position_embeddings,
    token_embeddings,
)


@pytest.fixture(scope="module")
def encoders() -> TextEncoders:
    torch.manual_seed(0)
    return TextEncoders(
        text_1=build_text_1(TINY), text_2=build_text_2(TINY), image_tower=ImageTower(32)
    )


def test_encode_captions_of_the_base_has_both_encoders_side_by_side(encoders: TextEncoders) -> None:
    base, pooled = encode_captions(encoders, ["a red circle"], kind="base")
    refiner, refiner_pooled = encode_captions(encoders, ["a red circle"], kind="refiner")
    assert base.shape == (1, 77, 64)
    assert refiner.shape == (1, 77, 32)
    assert torch.equal(base[..., 32:], refiner)
    assert torch.equal(pooled, refiner_pooled)


@pytest.mark.parametrize("preset", [TINY, TINY_REFINER], ids=lambda preset: preset.name)
def test_draw_batch_keeps_caption_and_conditioning_together(
    preset: ModelPreset, encoders: TextEncoders
) -> None:
    torch.manual_seed(0)
    shard = encode_scenes(build_vae(TINY), bucket=(128, 128), num_samples=6, seed=0)
    encoded = encode_shard(encoders, shard, kind=preset.kind)
    states_NTD, pooled_NP = encoded.states_NTD, encoded.pooled_NP
    batch = draw_batch([encoded], batch_size=8, kind=preset.kind, scaling_factor=1.0)
    ids_N = shard.size_ids_N6 if preset.kind == "base" else shard.refiner_ids(torch.arange(6))
    for row in range(8):
        sources = [i for i in range(6) if torch.equal(batch.states_BTD[row], states_NTD[i].float())]
        assert any(
            torch.equal(batch.time_ids_BN[row], ids_N[i])
            and torch.equal(batch.pooled_BP[row], pooled_NP[i].float())
            for i in sources
        )
    assert batch.time_ids_BN.dtype == torch.float32


def test_draw_batch_of_places_only_draws_captions_that_name_one(encoders: TextEncoders) -> None:
    torch.manual_seed(0)
    shard = encode_scenes(build_vae(TINY), bucket=(128, 128), num_samples=24, seed=0)
    encoded = encode_shard(encoders, shard, kind="base")
    batch = draw_batch([encoded], batch_size=64, kind="base", scaling_factor=1.0, places_only=True)
    drawn = {
        caption
        for states_TD in batch.states_BTD
        for caption, own_TD in zip(shard.captions, encoded.states_NTD, strict=True)
        if torch.equal(own_TD.float(), states_TD)
    }
    places = re.compile(r"left of|right of|above|below|in the|at the|on the")
    assert drawn
    assert all(places.search(caption) for caption in drawn)
    assert not all(places.search(caption) for caption in shard.captions)


def test_hidden_words_leave_the_cells_and_the_other_samples_alone(encoders: TextEncoders) -> None:
    shard = encode_scenes(build_vae(TINY), bucket=(128, 128), num_samples=2, seed=0)
    encoded = encode_shard(encoders, shard, kind="base")
    batch = draw_batch([encoded], batch_size=3, kind="base", scaling_factor=1.0)
    hidden = hide_words(batch, torch.tensor([True, False, True]))
    assert torch.equal(hidden.states_BTD[1], batch.states_BTD[1])
    for row in (0, 2):
        assert not hidden.states_BTD[row, :FIRST_CELL_POSITION].any()
        assert torch.equal(
            hidden.states_BTD[row, FIRST_CELL_POSITION:],
            batch.states_BTD[row, FIRST_CELL_POSITION:],
        )


def test_give_states_unit_scale_makes_states_spread_by_one(encoders: TextEncoders) -> None:
    texts = [f"a {size} {colour} star" for size in ("small", "large") for colour in ("red", "blue")]
    with torch.no_grad():  # as large as in training: the norms' epsilon is nothing beside them
        for table in token_embeddings(encoders.text_1, encoders.text_2):
            table.weight.mul_(25)
        for positions_TD in position_embeddings(encoders.text_1, encoders.text_2):
            positions_TD.mul_(25)
    give_states_unit_scale(encoders, texts)
    states_NTD, _ = encode_captions(encoders, texts, kind="base")
    num_tokens = [6] * 4
    assert content_scale(states_NTD[..., :32].float(), num_tokens) == pytest.approx(1.0, abs=0.01)
    assert content_scale(states_NTD[..., 32:].float(), num_tokens) == pytest.approx(1.0, abs=0.01)
