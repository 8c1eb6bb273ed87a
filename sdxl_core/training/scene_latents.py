"""Scenes encoded once: the autoencoder's moments, captions and micro-conditioning, in safetensors
shards by bucket.

Legend of shape suffixes: N samples, C latent channels, H latent height, W latent width, T token
positions, D width of the text states, P width of the pooled vector.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdxl_core.data.buckets import Bucket
from sdxl_core.data.scene_samples import render_sample
from sdxl_core.nets.build import AutoencoderKL

# Buckets of the embedded model and their shares of the samples: mostly square, six others.
TRAINING_BUCKETS: dict[Bucket, float] = {
    (128, 128): 0.52,
    (104, 152): 0.08,
    (152, 104): 0.08,
    (96, 160): 0.08,
    (160, 96): 0.08,
    (112, 144): 0.08,
    (144, 112): 0.08,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentShard:
    """Samples of one bucket.

    ``mean_NCHW`` and ``std_NCHW`` (float16) are the posterior before scaling. ``size_ids_N6``
    (float32) is original height and width, crop top and left, target height and width.
    ``aesthetic_N`` is the refiner's score.
    """

    captions: list[str]
    mean_NCHW: Tensor
    std_NCHW: Tensor
    size_ids_N6: Tensor
    aesthetic_N: Tensor

    def sample_latents(self, chosen_B: Tensor, *, scaling_factor: float) -> Tensor:
        """Draws scaled float32 latents of the chosen samples from their posteriors."""
        mean_BCHW, std_BCHW = self.mean_NCHW[chosen_B].float(), self.std_NCHW[chosen_B].float()
        return scaling_factor * (mean_BCHW + std_BCHW * torch.randn_like(mean_BCHW))

    def refiner_ids(self, chosen_B: Tensor) -> Tensor:
        """Returns (original height, original width, crop top, crop left, aesthetic score) of the
        chosen samples."""
        return torch.cat([self.size_ids_N6[chosen_B, :4], self.aesthetic_N[chosen_B, None]], dim=1)


@torch.no_grad()
def encode_scenes(
    autoencoder: AutoencoderKL,
    *,
    bucket: Bucket,
    num_samples: int,
    seed: int,
    spoilt_share: float = 0.0,
    batch_size: int = 16,
) -> LatentShard:
    """Renders and encodes ``num_samples`` scenes of one bucket; the same seed gives the same
    scenes."""
    rng = np.random.default_rng(seed)
    height_px, width_px = bucket
    means, stds, samples = [], [], []
    for start in range(0, num_samples, batch_size):
        batch = [
            render_sample(rng, height_px=height_px, width_px=width_px, spoilt_share=spoilt_share)
            for _ in range(min(batch_size, num_samples - start))
        ]
        rgb_BHWC = torch.from_numpy(np.stack([sample.rgb_HWC for sample in batch]))
        images_BCHW = rgb_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        with torch.autocast(images_BCHW.device.type, torch.bfloat16):
            posterior = autoencoder.encode(images_BCHW).latent_dist
        means.append(posterior.mean.half())
        stds.append(posterior.std.half())
        samples += batch
    sizes = [(*s.original_size_px, *s.crop_px, *s.target_size_px) for s in samples]
    return LatentShard(
        captions=[sample.caption for sample in samples],
        mean_NCHW=torch.cat(means),
        std_NCHW=torch.cat(stds),
        size_ids_N6=torch.tensor(sizes, dtype=torch.float32),
        aesthetic_N=torch.tensor([sample.aesthetic for sample in samples]),
    )


def save_shard(shard: LatentShard, path: Path) -> None:
    """Writes a shard; it appears under its name only when it is whole."""
    tensors = {
        "mean": shard.mean_NCHW,
        "std": shard.std_NCHW,
        "size_ids": shard.size_ids_N6,
        "aesthetic": shard.aesthetic_N,
    }
    passing = path.with_suffix(".tmp")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        passing,
        metadata={"captions": json.dumps(shard.captions)},
    )
    passing.rename(path)


def load_shard(path: Path) -> LatentShard:
    """Reads what ``save_shard`` wrote."""
    with safe_open(path, framework="pt") as file:
        return LatentShard(
            captions=json.loads(file.metadata()["captions"]),
            mean_NCHW=file.get_tensor("mean"),
            std_NCHW=file.get_tensor("std"),
            size_ids_N6=file.get_tensor("size_ids"),
            aesthetic_N=file.get_tensor("aesthetic"),
        )
