"""Trains the embedded model's autoencoder on scenes: first whole, then the decoder alone.

Training runs on 64 px crops, because the networks are convolutional and crops are cheap;
the last part of it sees whole pictures, as they are used.
The encoder is frozen once its latents are good, so that diffusion training can start while the
decoder goes on getting crisper.

Legend of shape suffixes: N pictures, B batch, C channels, H height, W width.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sdxl_core.data.scene_samples import render_sample
from sdxl_core.nets.build import AutoencoderKL, build_vae
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.training.autoencoder import autoencoder_loss, edge_difference, standardise_latents
from sdxl_core.training.loop import LoopSettings, train

logger = logging.getLogger(__name__)

CROP_PX = 64
WHOLE_PX = 128
# Shares of the steps: local colour falls from the first to the second, pictures are whole from the
# third.
_COLOUR_FULL, _COLOUR_NONE, _WHOLE_FROM = 0.2, 0.4, 0.8
_LOCAL_COLOUR_WEIGHT = 0.5
# Standard deviation of the scaled latents. At 1 the highest noise level still shows where the large
# flat objects are, and a denoiser learns to look there instead of reading it.
LATENT_SPREAD = 0.4
_FACTOR = 8
_PLACES_LOOKED_AT = 3
_LEAST_EDGE = 60  # of the sum over the three channels, 0 to 765


def render_pool(num_pictures: int, *, seed: int) -> Tensor:
    """Renders square pictures, some spoilt, as uint8 of shape (N, 3, 128, 128)."""
    rng = np.random.default_rng(seed)
    pictures = [
        render_sample(rng, height_px=128, width_px=128, spoilt_share=0.1).rgb_HWC
        for _ in range(num_pictures)
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def to_signed(rgb: Tensor) -> Tensor:
    """Maps uint8 0 to 255 to float -1 to 1."""
    return rgb.float() / 127.5 - 1.0


def num_edges(rgb_CHW: Tensor) -> int:
    """Number of neighbours in a uint8 picture that differ clearly: more than noise would make."""
    levels_CHW = rgb_CHW.short()
    steps = (levels_CHW.diff(dim=axis).abs().sum(0) > _LEAST_EDGE for axis in (-1, -2))
    return sum(int(step.sum()) for step in steps)


def draw_crops(pool_NCHW: Tensor, batch_size: int, crop_px: int = CROP_PX) -> Tensor:
    """Draws square crops of random pictures, float (B, 3, crop_px, crop_px) in [-1, 1].

    Of a few random places in a picture the one with most edges is taken: most of a scene is
    flat, and there is nothing left to learn from that long before corners come out sharp.
    """
    starts = pool_NCHW.shape[-1] - crop_px + 1
    crops = []
    for i in torch.randint(len(pool_NCHW), (batch_size,)).tolist():
        corners = torch.randint(starts, (_PLACES_LOOKED_AT, 2)).tolist()
        candidates = [
            pool_NCHW[i, :, top : top + crop_px, left : left + crop_px] for top, left in corners
        ]
        crops.append(max(candidates, key=num_edges))
    return to_signed(torch.stack(crops))


def train_autoencoder(
    preset: ModelPreset, work: Path, *, settings: LoopSettings, batch_size: int = 8
) -> AutoencoderKL:
    """Trains encoder and decoder together, freezes the encoder and standardises its latents.

    Args:
        preset: gives sizes and scaling factor.
        work: folder for the state that a resume goes on from.
        settings: length and learning rate.
        batch_size: crops in a step; a quarter of it when pictures are whole.

    Returns:
        The autoencoder; what makes latents is rounded to float16, as it will be shipped.
    """
    vae = build_vae(preset)
    pool_NCHW = render_pool(4000, seed=1)

    def loss_at(step: int) -> Tensor:
        progress = step / settings.num_steps
        whole = progress >= _WHOLE_FROM
        images_BCHW = (
            draw_crops(pool_NCHW, batch_size // 4, WHOLE_PX)
            if whole
            else draw_crops(pool_NCHW, batch_size)
        )
        fallen = (progress - _COLOUR_FULL) / (_COLOUR_NONE - _COLOUR_FULL)
        loss = autoencoder_loss(
            vae,
            images_BCHW,
            local_colour_weight=_LOCAL_COLOUR_WEIGHT * (1 - min(max(fallen, 0.0), 1.0)),
        )
        if step % settings.log_every == 0:
            logger.info(
                "L1 %.4f edges %.4f KL %.2f local colour %.4f",
                *(
                    float(part)
                    for part in (loss.reconstruction, loss.edges, loss.kl, loss.local_colour)
                ),
            )
        return loss.total

    train(vae, loss_at, settings=settings, state_path=work / "autoencoder.pt").copy_to(vae)
    with torch.no_grad():
        means_NCHW = torch.cat(
            [vae.encode(to_signed(batch)).latent_dist.mean for batch in pool_NCHW[:256].split(16)]
        )
        standardise_latents(
            vae,
            means_NCHW.mean((0, 2, 3)),
            means_NCHW.std((0, 2, 3)),
            scaling_factor=preset.vae.scaling_factor,
            spread=LATENT_SPREAD,
        )
        for part in (vae.encoder, vae.quant_conv):
            for parameter in part.parameters():
                parameter.copy_(parameter.half().float())
    return vae


class _Decoder(nn.Module):
    """The half of an autoencoder that reads latents, as one module to optimise."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, latents_BCHW: Tensor) -> Tensor:
        decoded_BCHW: Tensor = self.decoder(self.post_quant_conv(latents_BCHW))
        return decoded_BCHW.float()


def train_decoder(
    vae: AutoencoderKL, work: Path, *, settings: LoopSettings, batch_size: int = 8
) -> None:
    """Trains the decoder on the frozen encoder's latents; ``vae`` ends with the averaged weights.

    Args:
        vae: from ``train_autoencoder``; its encoder is not touched.
        work: folder for the state that a resume goes on from.
        settings: length and learning rate.
        batch_size: crops in a step.
    """
    pool_NCHW = render_pool(1400, seed=21)
    with torch.no_grad():
        posteriors = [vae.encode(to_signed(batch)).latent_dist for batch in pool_NCHW.split(20)]
        means_NCHW = torch.cat([posterior.mean for posterior in posteriors])
        stds_NCHW = torch.cat([posterior.std for posterior in posteriors])
    decoder = _Decoder(vae)
    cells = CROP_PX // _FACTOR
    starts = means_NCHW.shape[-1] - cells + 1

    def loss_at(_: int) -> Tensor:
        latents, pictures = [], []
        for i in torch.randint(len(pool_NCHW), (batch_size,)).tolist():
            top, left = torch.randint(starts, (2,)).tolist()
            window = (slice(None), slice(top, top + cells), slice(left, left + cells))
            mean, std = means_NCHW[i][window], stds_NCHW[i][window]
            latents.append(mean + std * torch.randn_like(mean))
            rows = slice(top * _FACTOR, top * _FACTOR + CROP_PX)
            columns = slice(left * _FACTOR, left * _FACTOR + CROP_PX)
            pictures.append(pool_NCHW[i, :, rows, columns])
        expected_BCHW = to_signed(torch.stack(pictures))
        decoded_BCHW = decoder(torch.stack(latents))
        reconstruction = (decoded_BCHW - expected_BCHW).abs().mean()
        loss: Tensor = reconstruction + edge_difference(decoded_BCHW, expected_BCHW)
        return loss

    average = train(decoder, loss_at, settings=settings, state_path=work / "decoder.pt")
    average.copy_to(decoder)
