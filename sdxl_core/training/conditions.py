"""The conditions of a batch: the numbers that stand for sizes and crops, and dropping of text and
numbers.

What is dropped is an embedding of zeros, as in the code of SDXL's release: text states and pooled
vector become zeros, and so does the sinusoid of a number (the sinusoid of the number 0 is another
thing, half of it ones). diffusers' UNet makes the sinusoids itself, so a dropped number is marked
NaN in the batch, and ``allow_dropped_numbers`` teaches the UNet what the mark means. A UNet that
was not taught answers NaN, and the first step tells.

Legend of shape suffixes: B batch, N number of micro-conditioning numbers (6 base, 5 refiner), G
the three groups of them, M numbers of all samples (B * N), E width of a number's sinusoid.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError, SchemaError
from sdxl_core.nets.presets import ModelKind
from sdxl_core.training.objective import DiffusionBatch
from sdxl_core.training.sample_draws import Purpose, uniform
from sdxl_core.training.transfer import to_device

_SIZE_COLUMNS = ("original_height", "original_width", "crop_top", "crop_left")
_LAST_COLUMNS: dict[ModelKind, tuple[str, ...]] = {
    "base": ("target_height", "target_width"),
    "refiner": ("aesthetic",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionDropout:
    """The share of samples, 0 to 1, that is trained without each condition.

    SDXL's shares are not published; its paper names 10 % for text as an example.
    """

    text: float = 0.1
    """Share of samples without caption."""
    text_parts: Literal["together", "apart"] = "together"
    """Whether all of a caption is dropped at once, as guidance leaves it out at inference, or the
    states of each encoder and the pooled vector each by a draw of its own, as in the code of SDXL's
    release."""
    original_size: float = 0.0
    """Share of samples without original height and width."""
    crop: float = 0.0
    """Share of samples without crop top and left."""
    last_numbers: float = 0.0
    """Share of samples without target height and width (base) or aesthetic score (refiner)."""

    def __post_init__(self) -> None:
        for name in ("text", "original_size", "crop", "last_numbers"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ConfigError(f"dropout.{name}: found {share}, expected a share from 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DroppedConditions:
    """What each sample is trained without, bool.

    ``text_B3`` are the states of encoder 1, the states of encoder 2 and the pooled vector.
    ``numbers_BG`` are original size, crop, and target size or aesthetic score.
    """

    text_B3: Tensor
    numbers_BG: Tensor


def draw_dropped(seeds: Sequence[int], dropout: ConditionDropout) -> DroppedConditions:
    """Draws what each sample is trained without, from its seed alone; on the CPU."""
    together = dropout.text_parts == "together"
    text: tuple[Purpose, ...] = ("drop states 1", "drop states 2", "drop pooled")
    if together:
        text = ("drop text",) * 3
    numbers: dict[Purpose, float] = {
        "drop original size": dropout.original_size,
        "drop crop": dropout.crop,
        "drop last numbers": dropout.last_numbers,
    }
    return DroppedConditions(
        text_B3=torch.tensor(
            [[uniform(seed, purpose) < dropout.text for purpose in text] for seed in seeds]
        ),
        numbers_BG=torch.tensor(
            [
                [uniform(seed, purpose) < share for purpose, share in numbers.items()]
                for seed in seeds
            ]
        ),
    )


def drop_conditions(
    batch: DiffusionBatch,
    dropped: DroppedConditions,
    *,
    empty: tuple[Tensor, Tensor] | None = None,
    text_1_width: int = 0,
) -> DiffusionBatch:
    """Replaces what is dropped.

    Args:
        batch: the batch; ``dropped`` is moved to its device.
        dropped: see ``draw_dropped``.
        empty: (states_TD, pooled_P) of the empty prompt, which takes the place of a dropped text in
            the refiner's training; None stands for zeros, as for the base.
        text_1_width: how many columns of the text states are encoder 1's, from the first on: 768 in
            the released base, 0 in a refiner. Matters where text parts are dropped apart.

    Returns:
        The batch, with NaN for dropped numbers: see ``allow_dropped_numbers``.
    """
    device = batch.states_BTD.device
    text_B3 = to_device(dropped.text_B3, device)
    numbers_BG = to_device(dropped.numbers_BG, device)
    if empty is None:
        empty_TD = torch.zeros_like(batch.states_BTD[0])
        empty_P = torch.zeros_like(batch.pooled_BP[0])
    else:
        empty_TD, empty_P = empty
    is_text_1_D = torch.arange(batch.states_BTD.shape[-1], device=device) < text_1_width
    states_dropped_B1D = torch.where(is_text_1_D, text_B3[:, :1], text_B3[:, 1:2])[:, None]
    # Two numbers a group; the refiner's last group has one.
    numbers_dropped_BN = numbers_BG.repeat_interleave(2, dim=1)[:, : batch.time_ids_BN.shape[1]]
    return dataclasses.replace(
        batch,
        states_BTD=torch.where(states_dropped_B1D, empty_TD, batch.states_BTD),
        pooled_BP=torch.where(text_B3[:, 2:], empty_P, batch.pooled_BP),
        time_ids_BN=batch.time_ids_BN.masked_fill(numbers_dropped_BN, math.nan),
    )


class DroppableNumbers(nn.Module):
    """Sinusoids of micro-conditioning numbers; that of NaN, a dropped number, is zeros.

    It has no weights: files of a UNet are the same with and without it.
    """

    def __init__(self, sinusoids: nn.Module) -> None:
        super().__init__()
        self.sinusoids = sinusoids

    def forward(self, numbers_M: Tensor) -> Tensor:
        """Returns the sinusoids (M, E)."""
        known_ME: Tensor = self.sinusoids(numbers_M.nan_to_num(nan=0.0))
        return known_ME.masked_fill(numbers_M.isnan()[:, None], 0.0)


def allow_dropped_numbers(unet: nn.Module) -> None:
    """Teaches diffusers' UNet that NaN among its ``time_ids`` is a dropped number; nothing else
    changes. Doing it twice is doing it once."""
    sinusoids = unet.get_submodule("add_time_proj")
    if not isinstance(sinusoids, DroppableNumbers):
        unet.add_module("add_time_proj", DroppableNumbers(sinusoids))


def time_ids_of_samples(
    columns: Mapping[str, Sequence[float | None]], *, kind: ModelKind
) -> Tensor:
    """Returns the micro-conditioning numbers of rows of the samples dataset, (B, N) float32.

    Args:
        columns: of ``samples_schema``: original and crop columns, and the target's (base) or
            ``aesthetic`` (refiner).
        kind: of the network.

    Raises:
        SchemaError: a column is absent or a value of it is missing.
    """
    names = (*_SIZE_COLUMNS, *_LAST_COLUMNS[kind])
    for name in names:
        if name not in columns or any(value is None for value in columns[name]):
            what = "a row without a value" if name in columns else "no such column"
            advice = "prepare the samples with an aesthetic score" if name == "aesthetic" else ""
            raise SchemaError(
                f"samples, column {name}: found {what}, expected a number in every row to train a "
                f"{kind}; {advice or 'see sdxl fsck'}"
            )
    return torch.tensor([list(columns[name]) for name in names], dtype=torch.float32).T.contiguous()
