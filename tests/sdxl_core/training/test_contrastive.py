"""Contrastive training: the loss is open_clip's, and rescaling the states changes nothing else."""

import pytest
import torch
import torch.nn.functional as F

from sdxl_core.nets.build import build_text_1, build_text_2
from sdxl_core.nets.presets import TINY
from sdxl_core.nets.text import encode_text_1, encode_text_2
from sdxl_core.nets.tokenizer import tokenize
from sdxl_core.training.contrastive import (
    ContrastiveHeads,
    ImageTower,
    clip_loss,
    contrastive_loss,
    scale_residual_stream,
)


def _unit(seed: int) -> torch.Tensor:
    vectors = torch.randn(6, 48, generator=torch.Generator().manual_seed(seed))
    return F.normalize(vectors, dim=-1)


def test_clip_loss_agrees_with_open_clip() -> None:
    from open_clip.loss import ClipLoss

    scale = torch.tensor(17.0)
    expected = ClipLoss()(_unit(0), _unit(1), scale)
    torch.testing.assert_close(clip_loss(_unit(0), _unit(1), scale), expected)


def test_clip_loss_of_matching_pairs_is_small() -> None:
    assert clip_loss(_unit(0), _unit(0), torch.tensor(100.0)) < 1e-3


def test_contrastive_loss_counts_matching_rows() -> None:
    heads = ContrastiveHeads(48, 48)
    with torch.no_grad():
        heads.text_1_projection.weight.copy_(torch.eye(48))
    loss = contrastive_loss(_unit(0), _unit(0), _unit(0).roll(1, 0), heads)
    assert loss.accuracy_1 == 1.0
    assert loss.accuracy_2 == 0.0


def test_contrastive_heads_temperature_is_bounded() -> None:
    heads = ContrastiveHeads(32, 48)
    with torch.no_grad():
        heads.logit_scale.fill_(50.0)
    assert heads.scale().item() == pytest.approx(100.0)


def test_image_tower_gives_unit_vectors_for_any_size() -> None:
    tower = ImageTower(48)
    for size in ((64, 64), (128, 128), (104, 152)):
        vectors = tower(torch.rand(2, 3, *size) * 2 - 1)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


def test_image_tower_tells_flat_colours_apart() -> None:
    torch.manual_seed(0)
    flat = torch.tensor([[-0.9, 0.3, 0.8], [0.9, 0.9, -0.6]])[:, :, None, None].expand(
        -1, -1, 64, 64
    )
    first, second = ImageTower(48)(flat)
    assert (first - second).norm() > 0.01


def test_scale_residual_stream_scales_the_states_and_keeps_the_pooled_vector() -> None:
    torch.manual_seed(0)
    text_1, text_2 = build_text_1(TINY), build_text_2(TINY)
    ids_1, ids_2 = (
        tokenize(["a red circle on a blue background", ""], pad_id=pad_id).ids_BT
        for pad_id in (49407, 0)
    )
    with torch.no_grad():
        # Away from the small initial values the layer norms' epsilon does not matter.
        scale_residual_stream(text_1, 10.0)
        scale_residual_stream(text_2, 10.0)
        states_1 = encode_text_1(text_1, ids_1)
        states_2, pooled = encode_text_2(text_2, ids_2)
        scale_residual_stream(text_1, 3.0)
        scale_residual_stream(text_2, 3.0)
        torch.testing.assert_close(encode_text_1(text_1, ids_1), 3 * states_1, atol=1e-2, rtol=1e-3)
        scaled_2, pooled_after = encode_text_2(text_2, ids_2)
        torch.testing.assert_close(scaled_2, 3 * states_2, atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(pooled_after, pooled, atol=1e-3, rtol=1e-3)
