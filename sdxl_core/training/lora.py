"""Finetuning with low-rank adapters: a UNet's own weights stand still, small ones beside it learn.

The adapters are peft's. peft is imported when it is needed; it comes with the ``train`` extra.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError, WeightsError
from sdxl_core.training.lora_files import LoraWeights

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

LoraTargets = Literal["attention", "transformer"]

# Last parts of the names of the layers.
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGET_MODULES: dict[LoraTargets, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "transformer": (*_ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
}
"""``attention`` is the choice of diffusers' training script, ``transformer`` that of sd-scripts."""

_ADAPTER = "default"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Size and place of an adapter."""

    rank: int = 16
    alpha: float | None = None
    """What is added has the factor ``alpha / rank``; None is the rank."""
    targets: LoraTargets = "attention"
    """Layers that get an adapter: see ``TARGET_MODULES``."""
    dropout: float = 0.0
    """Share of each adapter's inputs that is dropped in training."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora rank: found {self.rank}, expected 1 or more, such as 16")
        if self.alpha is not None and not self.alpha > 0:
            raise ConfigError(f"lora alpha: found {self.alpha}, expected more than 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora dropout: found {self.dropout}, expected 0 <= dropout < 1")

    @property
    def used_alpha(self) -> float:
        """``alpha``, or the rank if that is None."""
        return float(self.rank if self.alpha is None else self.alpha)


def add_lora(unet: nn.Module, settings: LoraSettings, *, seed: int) -> list[nn.Parameter]:
    """Gives a UNet an adapter that changes nothing yet, and freezes everything else.

    Args:
        unet: diffusers' UNet, base or refiner, changed in place.
        settings: of the adapter.
        seed: of its starting weights; every worker needs the same.

    Returns:
        The adapter's parameters, float32 whatever the network's own dtype is, in the order of the
        network.

    Raises:
        ConfigError: the UNet has an adapter already, or peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"lora: found no {error.name}, expected peft; install the extra: sdxl-ray[train]"
        ) from error
    if _layers(unet):
        raise ConfigError("lora: found a UNet with an adapter, expected one without")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.used_alpha,
        lora_dropout=settings.dropout,
        target_modules=list(TARGET_MODULES[settings.targets]),
    )
    unet.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, unet, adapter_name=_ADAPTER)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return trained


def lora_weights(unet: nn.Module) -> LoraWeights:
    """Returns the adapter that ``add_lora`` made, as it is now; the tensors are the network's own.

    Raises:
        ConfigError: there is none.
    """
    layers = _layers(unet)
    if not layers:
        raise ConfigError("lora: found a UNet without an adapter, expected one; see add_lora")
    first = next(iter(layers.values()))
    return LoraWeights(
        rank=first.r[_ADAPTER],
        alpha=float(first.lora_alpha[_ADAPTER]),
        down={name: layer.lora_A[_ADAPTER].weight for name, layer in layers.items()},
        up={name: layer.lora_B[_ADAPTER].weight for name, layer in layers.items()},
    )


def lora_of_parameters(parameters: Mapping[str, Tensor], *, rank: int, alpha: float) -> LoraWeights:
    """Returns the adapter whose parameters have the names that ``add_lora`` gave them.

    Args:
        parameters: by name in the UNet, all of the adapter and nothing else.
        rank: of the adapter.
        alpha: likewise.

    Raises:
        WeightsError: there are others, or of another rank.
    """
    sides: dict[str, dict[str, Tensor]] = {"lora_A": {}, "lora_B": {}}
    for name, tensor in parameters.items():
        module, _, half = name.removesuffix(f".{_ADAPTER}.weight").rpartition(".")
        if half not in sides or rank not in tensor.shape:
            raise WeightsError(
                f"lora: found the parameter {name} of the shape {tuple(tensor.shape)}, expected "
                f"halves of an adapter of rank {rank}"
            )
        sides[half][module] = tensor
    return LoraWeights(rank=rank, alpha=alpha, down=sides["lora_A"], up=sides["lora_B"])


def num_lora_parameters(unet: nn.Module, settings: LoraSettings) -> int:
    """Returns how many weights ``add_lora`` would add to a UNet, which may be without memory."""
    ends = tuple(f".{target}" for target in TARGET_MODULES[settings.targets])
    return sum(
        settings.rank * (module.in_features + module.out_features)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and f".{name}".endswith(ends)
    )


@torch.no_grad()
def set_lora_weights(unet: nn.Module, lora: LoraWeights) -> None:
    """Puts an adapter's weights into a UNet whose ``add_lora`` had the same settings.

    Raises:
        ConfigError: rank, alpha or layers are others.
    """
    own = lora_weights(unet)
    found, expected = ((side.rank, side.alpha, sorted(side.down)) for side in (lora, own))
    if found != expected:
        raise ConfigError(
            f"lora: found rank {lora.rank}, alpha {lora.alpha} and {len(lora.down)} layers, "
            f"expected rank {own.rank}, alpha {own.alpha} and {len(own.down)} layers; start with "
            "the settings that the adapter was made with"
        )
    for mine, theirs in ((own.down, lora.down), (own.up, lora.up)):
        for name, tensor in mine.items():
            tensor.copy_(theirs[name])


def _layers(unet: nn.Module) -> "dict[str, LoraLayer]":
    """The layers that have an adapter, by name. Those of peft tell themselves by what they hold."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(getattr(module, "lora_A", None), nn.ModuleDict) and _ADAPTER in module.lora_A
    }
