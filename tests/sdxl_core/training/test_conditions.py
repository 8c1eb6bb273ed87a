"""Micro-conditioning numbers, and what is dropped of a batch."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError, SchemaError
from sdxl_core.nets.presets import ModelKind
from sdxl_core.training.conditions import (
    ConditionDropout,
    DroppedConditions,
    allow_dropped_numbers,
    draw_dropped,
    drop_conditions,
    time_ids_of_samples,
)
from sdxl_core.training.objective import DiffusionBatch, predict
from tests.micro_models import MICRO_BASE, MICRO_REFINER, attentive_model

PRESETS = {"base": MICRO_BASE, "refiner": MICRO_REFINER}
ROWS = {
    "original_height": [600, 601],
    "original_width": [800, 801],
    "crop_top": [0, 3],
    "crop_left": [16, 0],
    "target_height": [512, 512],
    "target_width": [704, 704],
    "aesthetic": [6.5, 2.25],
}


def _batch(kind: ModelKind, batch_size: int = 2) -> DiffusionBatch:
    preset = PRESETS[kind]
    generator = torch.Generator().manual_seed(0)
    return DiffusionBatch(
        latents_BCHW=torch.randn(batch_size, 4, 8, 8, generator=generator),
        states_BTD=torch.randn(batch_size, 7, preset.unet.cross_attention_dim, generator=generator),
        pooled_BP=torch.randn(batch_size, preset.text_2.projection_width, generator=generator),
        time_ids_BN=time_ids_of_samples(ROWS, kind=kind)[:1].expand(batch_size, -1),
    )


def _unet(kind: ModelKind) -> nn.Module:
    return attentive_model(PRESETS[kind], seed=3).unet


def _nothing(batch_size: int) -> DroppedConditions:
    return DroppedConditions(
        text_B3=torch.zeros(batch_size, 3, dtype=torch.bool),
        numbers_BG=torch.zeros(batch_size, 3, dtype=torch.bool),
    )


def test_time_ids_have_the_order_that_the_released_networks_learnt() -> None:
    base, refiner = (time_ids_of_samples(ROWS, kind=kind) for kind in ("base", "refiner"))
    assert base.tolist() == [[600, 800, 0, 16, 512, 704], [601, 801, 3, 0, 512, 704]]
    assert refiner.tolist() == [[600, 800, 0, 16, 6.5], [601, 801, 3, 0, 2.25]]
    assert base.dtype == torch.float32


def test_time_ids_of_a_refiner_need_an_aesthetic_score_in_every_row() -> None:
    rows = {**ROWS, "aesthetic": [6.5, None]}
    with pytest.raises(SchemaError, match=r"aesthetic: found a row without a value.*refiner"):
        time_ids_of_samples(rows, kind="refiner")
    del rows["aesthetic"]
    with pytest.raises(SchemaError, match="found no such column"):
        time_ids_of_samples(rows, kind="refiner")
    assert time_ids_of_samples(rows, kind="base").shape == (2, 6)


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_dropped_numbers_are_embedded_as_zeros(kind: ModelKind) -> None:
    """As in the original code: the sinusoids of a group are multiplied by 0 before the MLP."""
    unet = _unet(kind)
    batch = _batch(kind, batch_size=4)
    dropped = dataclasses.replace(
        _nothing(4), numbers_BG=torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]]).bool()
    )
    width = unet.config.addition_time_embed_dim
    sinusoids = unet.add_time_proj(batch.time_ids_BN.flatten()).reshape(4, -1, width)
    num_ids = sinusoids.shape[1]
    kept_BN = (~dropped.numbers_BG).repeat_interleave(2, dim=1)[:, :num_ids]
    vector_BV = torch.cat([batch.pooled_BP, (sinusoids * kept_BN[..., None]).flatten(1)], dim=1)
    expected = unet.add_embedding(vector_BV)

    allow_dropped_numbers(unet)
    marked = drop_conditions(batch, dropped)
    found = unet.get_aug_embed(
        emb=expected,
        encoder_hidden_states=batch.states_BTD,
        added_cond_kwargs={"text_embeds": marked.pooled_BP, "time_ids": marked.time_ids_BN},
    )
    assert torch.equal(found, expected)


def _answer(unet: nn.Module, batch: DiffusionBatch) -> Tensor:
    with torch.no_grad():
        timestep_B = torch.full((len(batch.latents_BCHW),), 500)
        return predict(unet, batch, batch.latents_BCHW, timestep_B)


def test_allow_dropped_numbers_changes_neither_weights_nor_answers() -> None:
    unet, batch = _unet("base"), _batch("base")
    names, before = list(unet.state_dict()), _answer(unet, batch)
    allow_dropped_numbers(unet)
    allow_dropped_numbers(unet)
    assert list(unet.state_dict()) == names
    assert torch.equal(_answer(unet, batch), before)


def test_dropped_number_is_another_thing_than_the_number_zero() -> None:
    unet, batch = _unet("base"), _batch("base")
    allow_dropped_numbers(unet)
    dropped, zero = (
        dataclasses.replace(
            batch, time_ids_BN=batch.time_ids_BN.index_fill(1, torch.tensor([2]), v)
        )
        for v in (math.nan, 0.0)
    )
    assert _answer(unet, dropped).isfinite().all()
    assert not torch.allclose(_answer(unet, dropped), _answer(unet, zero), atol=1e-4)


def test_dropped_number_without_teaching_the_unet_shows_at_once() -> None:
    dropped = dataclasses.replace(
        _nothing(2), numbers_BG=torch.tensor([[1, 0, 0], [0, 0, 0]]).bool()
    )
    answer = _answer(_unet("base"), drop_conditions(_batch("base"), dropped))
    assert answer[0].isnan().all()
    assert answer[1].isfinite().all()


@pytest.mark.parametrize(
    ("text_3", "zero_columns"),
    [((1, 0, 0), range(24)), ((0, 1, 0), range(24, 40)), ((1, 1, 1), range(40)), ((0, 0, 1), [])],
)
def test_dropped_text_parts_are_zeros_and_the_rest_is_as_it_was(
    text_3: tuple[int, int, int], zero_columns: range
) -> None:
    batch = _batch("base")
    dropped = dataclasses.replace(_nothing(2), text_B3=torch.tensor([text_3, (0, 0, 0)]).bool())
    found = drop_conditions(batch, dropped, text_1_width=24)
    expected = batch.states_BTD.clone()
    expected[0, :, list(zero_columns)] = 0
    assert torch.equal(found.states_BTD, expected)
    assert (found.pooled_BP[0] == 0).all() == bool(text_3[2])
    assert torch.equal(found.pooled_BP[1], batch.pooled_BP[1])
    assert torch.equal(found.time_ids_BN, batch.time_ids_BN)


def test_dropped_text_of_a_refiner_is_the_empty_prompt() -> None:
    batch = _batch("refiner")
    empty = (torch.full_like(batch.states_BTD[0], 7.0), torch.full_like(batch.pooled_BP[0], 8.0))
    dropped = dataclasses.replace(_nothing(2), text_B3=torch.tensor([[1, 1, 1], [0, 0, 0]]).bool())
    found = drop_conditions(batch, dropped, empty=empty)
    assert (found.states_BTD[0] == 7.0).all()
    assert (found.pooled_BP[0] == 8.0).all()
    assert torch.equal(found.states_BTD[1], batch.states_BTD[1])


def test_draw_dropped_has_the_asked_shares_each_by_its_own_draw() -> None:
    dropout = ConditionDropout(text=0.3, original_size=0.2, crop=0.5, last_numbers=0.1)
    dropped = draw_dropped(range(20_000), dropout)
    drawn_B4 = torch.cat([dropped.text_B3[:, :1], dropped.numbers_BG], dim=1).double()
    shares = torch.tensor([0.3, 0.2, 0.5, 0.1], dtype=torch.float64)
    torch.testing.assert_close(drawn_B4.mean(0), shares, atol=0.012, rtol=0)
    correlations = torch.corrcoef(drawn_B4.T) - torch.eye(4, dtype=torch.float64)
    assert correlations.abs().max() < 0.03


def test_draw_dropped_text_together_drops_all_of_it_and_apart_each_part_alone() -> None:
    together = draw_dropped(range(2000), ConditionDropout(text=0.4)).text_B3
    assert (together.all(dim=1) == together.any(dim=1)).all()
    apart = draw_dropped(range(20_000), ConditionDropout(text=0.4, text_parts="apart")).text_B3
    assert apart.all(dim=1).double().mean().item() == pytest.approx(0.4**3, abs=0.01)


def test_draw_dropped_of_a_sample_depends_on_its_seed_alone() -> None:
    dropout = ConditionDropout(text=0.5, crop=0.5)
    together = draw_dropped([1, 2, 3], dropout)
    for place, seed in enumerate([1, 2, 3]):
        alone = draw_dropped([seed], ConditionDropout(text=0.5, original_size=0.9, crop=0.5))
        assert torch.equal(alone.text_B3[0], together.text_B3[place])
        assert alone.numbers_BG[0, 1] == together.numbers_BG[place, 1]


def test_dropout_that_is_no_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dropout\.crop: found 1\.5"):
        ConditionDropout(crop=1.5)
