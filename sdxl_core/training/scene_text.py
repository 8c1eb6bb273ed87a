"""Trains the embedded model's two text encoders on scenes and their captions: contrastively, and
to say what lies where (``scene_layout``).

Legend of shape suffixes: N samples, B batch, T token positions.
"""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sdxl_core.data.scene_samples import render_sample
from sdxl_core.nets.build import CLIPTextModel, TextTransformer, build_text_1, build_text_2
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.nets.text import encode_text_1, encode_text_2
from sdxl_core.nets.tokenizer import END_ID, PAD_ID_TEXT_1, PAD_ID_TEXT_2, tokenize
from sdxl_core.training.contrastive import (
    IMAGE_TOWER_SIZE_PX,
    ContrastiveHeads,
    ImageTower,
    contrastive_loss,
    scale_residual_stream,
)
from sdxl_core.training.loop import LoopSettings, train
from sdxl_core.training.scene_latents import TRAINING_BUCKETS
from sdxl_core.training.scene_layout import (
    FIRST_CELL_POSITION,
    LayoutHead,
    LayoutTargets,
    cell_codes,
    draw_layouts,
)

logger = logging.getLogger(__name__)

# Spread of the position embeddings when training begins, and of the token embeddings, which stay as
# they were drawn. Contrastive training has little use for some words (colours tell pictures apart
# better than shapes do) and lets their vectors come to lie together; then a UNet cannot see them.
# Held vectors keep every word equally visible.
TOKEN_SPREAD = 0.5
# The contrastive loss is learnt quickly and costs as much as the layouts: every so many steps.
_CONTRASTIVE_EVERY = 4


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextEncoders:
    """Both encoders and the image tower that encoder 2 shares a space with."""

    text_1: CLIPTextModel
    text_2: TextTransformer
    image_tower: ImageTower


def position_embeddings(text_1: CLIPTextModel, text_2: TextTransformer) -> list[Tensor]:
    """The (T, D) tables that tell token positions apart, of both encoders."""
    return [text_1.embeddings.position_embedding.weight, text_2.positional_embedding]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TokenIds:
    """Token ids of captions as either encoder wants them padded."""

    ids_1_NT: Tensor
    ids_2_NT: Tensor


def token_ids(captions: list[str]) -> TokenIds:
    """Tokenises captions for both encoders."""
    return TokenIds(
        ids_1_NT=tokenize(captions, pad_id=PAD_ID_TEXT_1).ids_BT,
        ids_2_NT=tokenize(captions, pad_id=PAD_ID_TEXT_2).ids_BT,
    )


def token_embeddings(text_1: CLIPTextModel, text_2: TextTransformer) -> list[nn.Embedding]:
    """The tables that turn token ids into vectors, of both encoders."""
    return [text_1.get_input_embeddings(), text_2.token_embedding]


class _Towers(nn.Module):
    """All that the training of the encoders optimises, as one module."""

    def __init__(self, preset: ModelPreset) -> None:
        super().__init__()
        assert preset.text_1 is not None
        self.text_1 = build_text_1(preset)
        self.text_2 = build_text_2(preset)
        for embedding in token_embeddings(self.text_1, self.text_2):
            nn.init.normal_(embedding.weight, std=TOKEN_SPREAD)
            embedding.requires_grad_(False)
        for positions_TD in position_embeddings(self.text_1, self.text_2):
            with torch.no_grad():
                positions_TD.copy_(TOKEN_SPREAD * torch.randn_like(positions_TD))
                positions_TD[FIRST_CELL_POSITION:] = TOKEN_SPREAD * cell_codes(
                    positions_TD.shape[1]
                )
        self.image_tower = ImageTower(preset.text_2.projection_width)
        self.heads = ContrastiveHeads(preset.text_1.width, preset.text_2.projection_width)
        self.layout_1 = LayoutHead(preset.text_1.width)
        self.layout_2 = LayoutHead(preset.text_2.width)

    def layout_loss(self, layouts: LayoutTargets, tokens: TokenIds, chosen_B: Tensor) -> Tensor:
        states_1_BTD = encode_text_1(self.text_1, tokens.ids_1_NT[chosen_B])
        states_2_BTD, _ = encode_text_2(self.text_2, tokens.ids_2_NT[chosen_B])
        return self.layout_1.loss(states_1_BTD, layouts, chosen_B) + self.layout_2.loss(
            states_2_BTD, layouts, chosen_B
        )

    def loss(self, images_BCHW: Tensor, ids_1_BT: Tensor, ids_2_BT: Tensor) -> Tensor:
        ends_B = (ids_1_BT == END_ID).int().argmax(1)
        final_BTD = self.text_1(ids_1_BT).last_hidden_state
        pooled_1_BD = final_BTD[torch.arange(len(ends_B)), ends_B]
        return contrastive_loss(
            self.image_tower(images_BCHW), pooled_1_BD, self.text_2(ids_2_BT), self.heads
        ).total


def content_scale(states_NTD: Tensor, num_tokens_N: list[int]) -> float:
    """Mean standard deviation of the states at words and at cells, half from each."""
    words = [states_TD[1 : n - 1] for states_TD, n in zip(states_NTD, num_tokens_N, strict=True)]
    cells_BD = states_NTD[:, FIRST_CELL_POSITION:].flatten(0, 1)
    return float(torch.cat(words).std(0).mean() + cells_BD.std(0).mean()) / 2


@torch.no_grad()
def give_states_unit_scale(encoders: TextEncoders, captions: list[str]) -> None:
    """Scales both residual streams so that the states have a spread of one.

    The encoders are then rounded to float16, so that the UNet is trained on what is shipped.
    """
    tokens_1 = tokenize(captions, pad_id=PAD_ID_TEXT_1)
    tokens_2 = tokenize(captions, pad_id=PAD_ID_TEXT_2)
    states_1 = encode_text_1(encoders.text_1, tokens_1.ids_BT)
    states_2, _ = encode_text_2(encoders.text_2, tokens_2.ids_BT)
    scale_residual_stream(encoders.text_1, 1 / content_scale(states_1, tokens_1.num_tokens_B))
    scale_residual_stream(encoders.text_2, 1 / content_scale(states_2, tokens_2.num_tokens_B))
    for encoder in (encoders.text_1, encoders.text_2):
        for parameter in encoder.parameters():
            parameter.copy_(parameter.half().float())


def train_text_encoders(
    preset: ModelPreset,
    work: Path,
    *,
    settings: LoopSettings,
    num_samples: int = 24_000,
    num_layouts: int = 60_000,
    batch_size: int = 128,
) -> TextEncoders:
    """Trains both encoders on layouts and against one image tower.

    Args:
        preset: a base preset.
        work: folder for the state that a resume goes on from.
        settings: length and learning rate.
        num_samples: scenes rendered once, at the image tower's size.
        num_layouts: scenes that are only arranged.
        batch_size: pairs that are told apart in a step, and layouts beside them.
    """
    rng = np.random.default_rng(11)
    side_px = IMAGE_TOWER_SIZE_PX
    samples = [
        render_sample(rng, height_px=side_px, width_px=side_px, cropped_share=0, spoilt_share=0.1)
        for _ in range(num_samples)
    ]
    images_NCHW = torch.from_numpy(np.stack([s.rgb_HWC for s in samples])).permute(0, 3, 1, 2)
    captions = [sample.caption for sample in samples]
    tokens = token_ids(captions)
    layouts = draw_layouts(num_layouts, buckets=TRAINING_BUCKETS, seed=12)
    layout_tokens = token_ids(layouts.captions)
    towers = _Towers(preset)

    def loss_at(step: int) -> Tensor:
        layout_B = torch.randint(num_layouts, (batch_size,))
        loss = towers.layout_loss(layouts, layout_tokens, layout_B)
        if step % settings.log_every == 0:
            logger.info("layout %.4f", float(loss.detach()))
        if step % _CONTRASTIVE_EVERY:
            return loss
        chosen_B = torch.randint(num_samples, (batch_size,))
        images_BCHW = images_NCHW[chosen_B].float() / 127.5 - 1.0
        return loss + towers.loss(images_BCHW, tokens.ids_1_NT[chosen_B], tokens.ids_2_NT[chosen_B])

    train(towers, loss_at, settings=settings, state_path=work / "text.pt").copy_to(towers)
    encoders = TextEncoders(
        text_1=towers.text_1, text_2=towers.text_2, image_tower=towers.image_tower
    )
    give_states_unit_scale(encoders, captions[:512])
    return encoders
