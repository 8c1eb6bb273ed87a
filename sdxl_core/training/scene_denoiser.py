"""Trains the embedded base and refiner UNets on encoded scenes.

Legend of shape suffixes: N samples, B batch, T token positions, D width of the text states, P width
of the pooled vector.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sdxl_core.data.scene_captions import parse_caption
from sdxl_core.diffusion.schedules import NUM_TRAIN_TIMESTEPS
from sdxl_core.nets.build import AttnProcessor, UNet2DConditionModel, build_unet
from sdxl_core.nets.model import PredictionType
from sdxl_core.nets.presets import ModelKind, ModelPreset
from sdxl_core.nets.text import encode_text_1, encode_text_2
from sdxl_core.nets.tokenizer import PAD_ID_TEXT_1, PAD_ID_TEXT_2, tokenize
from sdxl_core.training.loop import LoopSettings, train
from sdxl_core.training.objective import (
    REFINER_TIMESTEPS,
    DiffusionBatch,
    diffusion_loss,
    draw_dropped_captions,
    draw_noise,
    drop_captions,
)
from sdxl_core.training.scene_latents import LatentShard
from sdxl_core.training.scene_layout import FIRST_CELL_POSITION
from sdxl_core.training.scene_text import TextEncoders

CAPTION_DROPOUT = 0.1
# Where noise hides everything, the velocity is the picture itself and its loss counts fully there;
# the loss of the predicted noise hardly counts there, and a short training never learns layouts.
PREDICTION_TYPE: PredictionType = "v_prediction"
# The base's first steps see only captions that say where something lies, at levels where noise
# hides something of it. In the plain mixture of captions and levels what the text says about places
# stays unread for thousands of steps: it means nothing yet to the features that it should act on,
# nor they to it, so there is no gradient to begin with.
PLACES_SHARE = 0.3
PLACES_TIMESTEPS = (300, NUM_TRAIN_TIMESTEPS)
# How much more often captions are drawn in which one object has a place; few have one.
PLACED_WEIGHT = 2.5
# Share of the samples whose words are zeros, so that the cells of ``scene_layout``, which say what
# lies where and not just what there is, have to be read.
HIDDEN_WORDS = 0.3
_ENCODED_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedShard:
    """A shard of one bucket with the text inputs of its captions, in float16."""

    latents: LatentShard
    states_NTD: Tensor
    pooled_NP: Tensor
    weight_N: Tensor
    """How often each sample is drawn, relative to the others."""
    places_weight_N: Tensor
    """The same while places are learnt: 0 for captions that name none."""


def encode_shard(encoders: TextEncoders, shard: LatentShard, *, kind: ModelKind) -> EncodedShard:
    """Encodes a shard's captions and says how often each sample is drawn."""
    states_NTD, pooled_NP = encode_captions(encoders, shard.captions, kind=kind)
    said = [parse_caption(caption) for caption in shard.captions]
    placed_N = torch.tensor([bool(one and one.position) for one in said])
    related_N = torch.tensor([bool(one and one.relation) for one in said])
    weight_N = torch.where(placed_N, PLACED_WEIGHT, 1.0)
    return EncodedShard(
        latents=shard,
        states_NTD=states_NTD,
        pooled_NP=pooled_NP,
        weight_N=weight_N,
        places_weight_N=weight_N * (placed_N | related_N),
    )


@torch.no_grad()
def encode_captions(
    encoders: TextEncoders, captions: Sequence[str], *, kind: ModelKind
) -> tuple[Tensor, Tensor]:
    """Returns cross-attention states and pooled vectors as a UNet of this kind reads them.

    The base reads both encoders' states side by side, the refiner encoder 2's alone.
    """
    states, pooled = [], []
    for start in range(0, len(captions), _ENCODED_AT_ONCE):
        texts = captions[start : start + _ENCODED_AT_ONCE]
        states_BTD, pooled_BP = encode_text_2(
            encoders.text_2, tokenize(texts, pad_id=PAD_ID_TEXT_2).ids_BT
        )
        if kind == "base":
            ids_BT = tokenize(texts, pad_id=PAD_ID_TEXT_1).ids_BT
            states_BTD = torch.cat([encode_text_1(encoders.text_1, ids_BT), states_BTD], dim=-1)
        states.append(states_BTD.half())
        pooled.append(pooled_BP.half())
    return torch.cat(states), torch.cat(pooled)


def draw_batch(
    shards: Sequence[EncodedShard],
    *,
    batch_size: int,
    kind: ModelKind,
    scaling_factor: float,
    places_only: bool = False,
) -> DiffusionBatch:
    """Draws a batch of one bucket: a shard by its size, then samples of it with replacement by
    their weights."""
    sizes = torch.tensor([float(len(shard.latents.captions)) for shard in shards])
    shard = shards[int(torch.multinomial(sizes, 1))]
    weight_N = shard.places_weight_N if places_only else shard.weight_N
    chosen_B = torch.multinomial(weight_N, batch_size, replacement=True)
    latents = shard.latents
    base = kind == "base"
    return DiffusionBatch(
        latents_BCHW=latents.sample_latents(chosen_B, scaling_factor=scaling_factor),
        states_BTD=shard.states_NTD[chosen_B].float(),
        pooled_BP=shard.pooled_NP[chosen_B].float(),
        time_ids_BN=latents.size_ids_N6[chosen_B] if base else latents.refiner_ids(chosen_B),
    )


def hide_words(batch: DiffusionBatch, hidden_B: Tensor) -> DiffusionBatch:
    """Puts zeros in place of everything before the cells for the chosen samples.

    Args:
        batch: whose states are to be hidden.
        hidden_B: bool mask of the samples.
    """
    states_BTD = batch.states_BTD.clone()
    states_BTD[hidden_B, :FIRST_CELL_POSITION] = 0
    return dataclasses.replace(batch, states_BTD=states_BTD)


def train_denoiser(
    preset: ModelPreset,
    encoders: TextEncoders,
    shards: Sequence[LatentShard],
    work: Path,
    *,
    settings: LoopSettings,
    batch_size: int = 32,
) -> UNet2DConditionModel:
    """Trains a UNet with frozen text encoders and returns its averaged weights.

    The base learns all noise levels and drops captions to zeros. The refiner learns the first 200
    levels and drops captions to the empty prompt.

    Args:
        preset: the base or the refiner.
        encoders: frozen.
        shards: the refiner's include spoilt scenes, so that its aesthetic score means something.
        work: folder for the state that a resume goes on from.
        settings: length and learning rate.
        batch_size: samples in a step.
    """
    kind = preset.kind
    encoded = [encode_shard(encoders, shard, kind=kind) for shard in shards]
    unet = build_unet(preset)
    # On a CPU the plain products train a third faster than the fused kernel at these sizes.
    unet.set_attn_processor(AttnProcessor())
    empty, timesteps = None, (0, NUM_TRAIN_TIMESTEPS)
    if kind == "refiner":
        states_1TD, pooled_1P = encode_captions(encoders, [""], kind=kind)
        empty = (states_1TD[0].float(), pooled_1P[0].float())
        timesteps = REFINER_TIMESTEPS

    def loss_at(step: int) -> Tensor:
        places = kind == "base" and step < PLACES_SHARE * settings.num_steps
        batch = draw_batch(
            encoded,
            batch_size=batch_size,
            kind=kind,
            scaling_factor=preset.vae.scaling_factor,
            places_only=places,
        )
        batch = hide_words(batch, torch.rand(batch_size) < HIDDEN_WORDS)
        dropped_B = draw_dropped_captions(batch_size, share=CAPTION_DROPOUT)
        draw = draw_noise(batch.latents_BCHW, timesteps=PLACES_TIMESTEPS if places else timesteps)
        return diffusion_loss(
            unet,
            drop_captions(batch, dropped_B, empty),
            draw,
            prediction_type=PREDICTION_TYPE,
        )

    average = train(unet, loss_at, settings=settings, state_path=work / f"{preset.name}.pt")
    average.copy_to(unet)
    return unet
