"""Low-rank adapters as files: diffusers' naming and kohya's, both of which the usual tools read.

An adapter adds ``alpha / rank * up @ down`` to the weight of a linear layer (arXiv:2106.09685).

* diffusers: ``unet.MODULE.lora_A.weight`` (down) and ``lora_B`` (up), MODULE as in the network;
  rank and alpha are in the file's metadata. (Older files have ``lora.down`` and ``lora.up``.)
* kohya (sd-scripts; read by A1111, ComfyUI and diffusers): ``lora_unet_MODULE.lora_down.weight``,
  ``.lora_up.weight`` and ``.alpha``, MODULE as in the single file of the released models with ``_``
  for ``.``.

Shapes: R rank, I and O width of what goes in and out of a layer.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.layout_names import unet_single_name

_DIFFUSERS_METADATA = "lora_adapter_metadata"
_DOWN, _UP = ("lora_A", "lora_down", "lora.down"), ("lora_B", "lora_up", "lora.up")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LoraWeights:
    """One adapter of a UNet.

    Attributes:
        rank: R, of every layer.
        alpha: what is added has the factor ``alpha / rank``.
        down: (R, I) by the layer's name in the network.
        up: (O, R) likewise.
    """

    rank: int
    alpha: float
    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]


def kohya_name(module: str, *, up_block_types: Sequence[str]) -> str:
    """Returns kohya's name of a layer of the UNet.

    Args:
        module: in diffusers' network, such as ``mid_block.attentions.0.proj_in``.
        up_block_types: of the UNet's preset.
    """
    # The single file's rules are those of tensors, and some of them look at what follows a name.
    single = unet_single_name(f"{module}.weight", up_block_types=up_block_types)
    return "lora_unet_" + single.removesuffix(".weight").replace(".", "_")


def write_diffusers_lora(
    path: Path, lora: LoraWeights, *, dtype: torch.dtype = torch.float32
) -> None:
    """Writes what ``load_lora_weights`` of a diffusers pipeline reads.

    Args:
        path: of the file; diffusers looks for ``pytorch_lora_weights.safetensors`` in a folder.
        lora: the adapter.
        dtype: of the file.
    """
    tensors = {
        f"unet.{module}.{part}.weight": _stored(side[module], dtype)
        for part, side in (("lora_A", lora.down), ("lora_B", lora.up))
        for module in lora.down
    }
    settings = {
        "unet.r": lora.rank,
        "unet.lora_alpha": lora.alpha,
        "unet.target_modules": sorted(lora.down),
    }
    save_file(tensors, path, metadata={"format": "pt", _DIFFUSERS_METADATA: json.dumps(settings)})


def write_kohya_lora(
    path: Path,
    lora: LoraWeights,
    *,
    up_block_types: Sequence[str],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes what A1111, ComfyUI, sd-scripts and diffusers read.

    Args:
        path: of the file.
        lora: the adapter.
        up_block_types: of the UNet's preset.
        dtype: of the file.
    """
    tensors: dict[str, Tensor] = {}
    for module in lora.down:
        name = kohya_name(module, up_block_types=up_block_types)
        tensors[f"{name}.lora_down.weight"] = _stored(lora.down[module], dtype)
        tensors[f"{name}.lora_up.weight"] = _stored(lora.up[module], dtype)
        tensors[f"{name}.alpha"] = torch.tensor(lora.alpha, dtype=dtype)
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.alpha),
    }
    save_file(tensors, path, metadata=metadata)


def read_lora(path: Path, *, modules: Iterable[str], up_block_types: Sequence[str]) -> LoraWeights:
    """Reads an adapter of a UNet in diffusers' or kohya's naming, whoever wrote it.

    Args:
        path: of the file.
        modules: names of the UNet's linear layers.
        up_block_types: of the UNet's preset.

    Returns:
        The adapter in float32.

    Raises:
        WeightsError: the file cannot be read, is of neither naming, has layers that the UNet has
            not, or layers of several ranks or alphas.
    """
    modules = list(modules)
    places = {
        **{f"unet.{module}": module for module in modules},
        **{kohya_name(module, up_block_types=up_block_types): module for module in modules},
    }
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    sides = {**dict.fromkeys(_DOWN, down), **dict.fromkeys(_UP, up)}
    alphas: set[float] = set()
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {}).get(_DIFFUSERS_METADATA, "{}"))
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                place, _, part = name.removesuffix(".weight").rpartition(".")
                if place.endswith(".lora"):
                    place, part = place.removesuffix(".lora"), f"lora.{part}"
                if part == "alpha":
                    alphas.add(float(file.get_tensor(name)))
                else:
                    side = sides[part]
                    side[places[place]] = file.get_tensor(name).float()
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: is no safetensors file of an adapter: {error}") from error
    except KeyError as error:
        raise WeightsError(
            f"{path}: found {error}, expected layers of this UNet in diffusers' or kohya's naming; "
            "was the adapter trained for another model, or with text encoders?"
        ) from error
    ranks = {len(tensor) for tensor in down.values()}
    alphas = alphas or {float(settings.get("unet.lora_alpha", next(iter(ranks), 0)))}
    if len(ranks) != 1 or len(alphas) != 1 or down.keys() != up.keys():
        raise WeightsError(
            f"{path}: found {len(down)} layers of ranks {sorted(ranks)} and alphas "
            f"{sorted(alphas)}, expected one rank and one alpha, and both halves of every layer"
        )
    return LoraWeights(rank=ranks.pop(), alpha=alphas.pop(), down=down, up=up)


@torch.no_grad()
def merge_lora(unet: nn.Module, lora: LoraWeights, *, strength: float = 1.0) -> None:
    """Adds an adapter to the weights of a UNet that has none, in place.

    Args:
        unet: diffusers' UNet, or whatever has the adapter's layers.
        lora: the adapter.
        strength: factor of what is added; -1 takes it away again, up to rounding.
    """
    factor = strength * lora.alpha / lora.rank
    for module, down_RI in lora.down.items():
        weight_OI = unet.get_submodule(module).weight
        assert isinstance(weight_OI, Tensor)
        device = weight_OI.device
        added_OI = lora.up[module].float().to(device) @ down_RI.float().to(device)
        weight_OI.copy_(weight_OI.float() + factor * added_OI)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=dtype).contiguous()
