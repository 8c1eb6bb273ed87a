"""What the tests of adapters share."""

import copy

import torch
from torch import Tensor, nn

from sdxl_core.nets.presets import ModelKind
from sdxl_core.training.lora import LoraSettings
from tests.micro_models import micro_model

KINDS: list[ModelKind] = ["base", "refiner"]
SETTINGS = LoraSettings(rank=3, alpha=1.5, targets="transformer")


def fresh_unet(kind: ModelKind) -> nn.Module:
    """A UNet of a few thousand weights, always the same."""
    return copy.deepcopy(micro_model(kind).unet)


def answer(unet: nn.Module, kind: ModelKind) -> Tensor:
    """What a UNet says to fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    width, num_ids = (40, 6) if kind == "base" else (16, 5)
    conditions = {
        "text_embeds": torch.randn(2, 16, generator=generator),
        "time_ids": torch.full((2, num_ids), 64.0),
    }
    noisy_BCHW = torch.randn(2, 4, 8, 8, generator=generator)
    states_BTD = torch.randn(2, 7, width, generator=generator)
    said: Tensor = unet(
        noisy_BCHW, torch.tensor([10, 700]), states_BTD, added_cond_kwargs=conditions
    ).sample
    return said


def fill(unet: nn.Module) -> None:
    """Weights of an adapter as if it had learnt something."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
