"""What is not trained: autoencoder and text encoders, which turn samples into what the UNet reads.

Legend of shape suffixes: B batch, C channels, H W latent height and width, T token positions, D
text width, P pooled width, N micro-conditioning numbers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdxl_core.nets.autoencoder import encode_image
from sdxl_core.nets.model import SdxlModel
from sdxl_core.nets.text import encode_text_1, encode_text_2
from sdxl_core.nets.tokenizer import PAD_ID_TEXT_1, PAD_ID_TEXT_2, tokenize
from sdxl_core.training.conditions import time_ids_of_samples
from sdxl_core.training.objective import DiffusionBatch
from sdxl_core.training.sample_draws import posterior_latents
from sdxl_core.training.seeded_batches import SampleBatch
from sdxl_core.training.transfer import to_device


@torch.no_grad()
def encode_captions(
    model: SdxlModel, captions: Sequence[str], device: str
) -> tuple[Tensor, Tensor]:
    """Text states (B, T, D) and pooled vectors (B, P) as the UNet of this model reads them.

    Args:
        model: with text encoders; the base reads both side by side, the refiner encoder 2 alone.
        captions: longer ones are cut to 77 tokens.
        device: where the encoders are.
    """
    ids_2_BT = tokenize(captions, pad_id=PAD_ID_TEXT_2).ids_BT.to(device)
    states_BTD, pooled_BP = encode_text_2(model.text_2, ids_2_BT)
    if model.text_1 is not None:
        ids_1_BT = tokenize(captions, pad_id=PAD_ID_TEXT_1).ids_BT.to(device)
        states_BTD = torch.cat([encode_text_1(model.text_1, ids_1_BT), states_BTD], dim=-1)
    return states_BTD, pooled_BP


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrozenParts:
    """The networks that samples go through, as far as they are needed.

    Args:
        model: with the text encoders unless texts are stored, with the autoencoder if pictures
            are read.
        device: where they are.
        empty: (states_TD, pooled_P) of the empty prompt for a refiner, which takes the place of a
            dropped caption; None for a base.
    """

    model: SdxlModel
    device: str
    empty: tuple[Tensor, Tensor] | None = None

    @property
    def text_1_width(self) -> int:
        """Columns of the text states that are encoder 1's."""
        preset = self.model.preset.text_1
        return 0 if preset is None else preset.width

    def batch(self, samples: SampleBatch) -> DiffusionBatch:
        """The samples as the UNet reads them: latents drawn, captions encoded."""
        states_BTD, pooled_BP = self.texts(samples)
        return DiffusionBatch(
            latents_BCHW=posterior_latents(
                self.moments(samples),
                samples.seeds,
                scaling_factor=self.model.preset.vae.scaling_factor,
            ),
            states_BTD=states_BTD,
            pooled_BP=pooled_BP,
            time_ids_BN=time_ids_of_samples(samples.columns, kind=self.model.kind).to(self.device),
        )

    @torch.no_grad()
    def moments(self, samples: SampleBatch) -> Tensor:
        """Mean and log-variance of the latents (B, 2 C, H, W), stored or encoded now."""
        if samples.moments_BCHW is not None:
            # A copy: arrays out of the object store cannot be written to, which torch warns of.
            return to_device(torch.tensor(samples.moments_BCHW), self.device)
        assert samples.images_BHWC is not None
        rgb_BCHW = to_device(torch.tensor(samples.images_BHWC), self.device).permute(0, 3, 1, 2)
        return encode_image(self.model.vae, rgb_BCHW.float() / 127.5 - 1)

    def texts(self, samples: SampleBatch) -> tuple[Tensor, Tensor]:
        """Text states (B, T, D) and pooled vectors (B, P), stored or encoded now."""
        if samples.states_BTD is None or samples.pooled_BP is None:
            return encode_captions(self.model, samples.captions, self.device)
        states_BTD = to_device(torch.tensor(samples.states_BTD), self.device)
        return states_BTD, to_device(torch.tensor(samples.pooled_BP), self.device)


def encode_samples(parts: FrozenParts, samples: SampleBatch) -> SampleBatch:
    """The samples with latents and texts instead of pictures and captions that need a network.

    ``parts.batch`` makes the same of them as of the samples themselves, to the bit.

    Args:
        parts: the networks.
        samples: of one forward pass; what is encoded already stays as it is.

    Returns:
        With ``moments_BCHW``, ``states_BTD`` and ``pooled_BP``, float32 where they were made now:
        numpy has no bfloat16, and float32 has all its numbers.
    """
    made: dict[str, Any] = {}
    if samples.moments_BCHW is None:
        made["moments_BCHW"] = parts.moments(samples).cpu().numpy()
    if samples.states_BTD is None or samples.pooled_BP is None:
        states_BTD, pooled_BP = parts.texts(samples)
        made["states_BTD"] = states_BTD.float().cpu().numpy()
        made["pooled_BP"] = pooled_BP.float().cpu().numpy()
    return dataclasses.replace(samples, images_BHWC=None, **made)


def freeze(model: SdxlModel, *, device: str, drops_captions: bool = True) -> FrozenParts:
    """The frozen parts of a loaded model.

    Args:
        model: in evaluation mode, on ``device``.
        device: of all of it.
        drops_captions: whether the empty prompt of a refiner is needed; takes its text encoder.
    """
    empty = None
    if model.kind == "refiner" and drops_captions:
        states_BTD, pooled_BP = encode_captions(model, [""], device)
        empty = (states_BTD[0], pooled_BP[0])
    return FrozenParts(model=model, device=device, empty=empty)
