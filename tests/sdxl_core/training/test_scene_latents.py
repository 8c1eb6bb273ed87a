"""Encoded scenes: what is stored, what is drawn from it, and that a shard survives its file."""

from pathlib import Path

import pytest
import torch

from sdxl_core.data.scene_captions import is_held_out
from sdxl_core.nets.build import build_vae
from sdxl_core.nets.presets import TINY
from sdxl_core.training.scene_latents import (
    TRAINING_BUCKETS,
    LatentShard,
    encode_scenes,
    load_shard,
    save_shard,
)


@pytest.fixture(scope="module")
def shard() -> LatentShard:
    torch.manual_seed(0)
    return encode_scenes(
        build_vae(TINY), bucket=(104, 152), num_samples=12, seed=3, spoilt_share=0.5, batch_size=5
    )


def test_training_buckets_share_one_whole() -> None:
    assert sum(TRAINING_BUCKETS.values()) == pytest.approx(1.0)
    assert all(side % 8 == 0 for bucket in TRAINING_BUCKETS for side in bucket)


def test_encode_scenes_gives_latents_at_an_eighth_and_training_captions(shard: LatentShard) -> None:
    assert shard.mean_NCHW.shape == (12, 4, 13, 19)
    assert len(shard.captions) == 12
    assert not any(map(is_held_out, shard.captions))
    assert torch.equal(shard.size_ids_N6[:, 4:], torch.tensor([[104.0, 152.0]]).expand(12, 2))


def test_refiner_ids_end_with_the_aesthetic_score(shard: LatentShard) -> None:
    chosen_B = torch.tensor([4, 1])
    ids_B5 = shard.refiner_ids(chosen_B)
    assert torch.equal(ids_B5[:, :4], shard.size_ids_N6[chosen_B, :4])
    assert torch.equal(ids_B5[:, 4], shard.aesthetic_N[chosen_B])


def test_sample_latents_follows_the_posterior_and_the_scaling_factor(shard: LatentShard) -> None:
    torch.manual_seed(0)
    draws = torch.stack(
        [
            shard.sample_latents(torch.tensor([2]), scaling_factor=0.5)[0].flatten()
            for _ in range(400)
        ]
    )
    expected_mean = 0.5 * shard.mean_NCHW[2].float().flatten()
    expected_std = 0.5 * shard.std_NCHW[2].float().flatten()
    torch.testing.assert_close(draws.std(0), expected_std, rtol=0.25, atol=1e-3)
    assert ((draws.mean(0) - expected_mean).abs() < 5 * expected_std / 20 + 1e-4).all()


def test_load_shard_returns_what_was_saved(shard: LatentShard, tmp_path: Path) -> None:
    save_shard(shard, tmp_path / "shard.safetensors")
    loaded = load_shard(tmp_path / "shard.safetensors")
    assert loaded.captions == shard.captions
    for name in ("mean_NCHW", "std_NCHW", "size_ids_N6", "aesthetic_N"):
        assert torch.equal(getattr(loaded, name), getattr(shard, name))
    assert [path.name for path in tmp_path.iterdir()] == ["shard.safetensors"]
