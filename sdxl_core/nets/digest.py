"""The name of a set of weights: one hash over its tensors, the same in every layout.

Every tensor is named as in the diffusers layout and hashed as it is stored: component, name, dtype,
shape and bytes. The digest is the SHA-256 of those lines, sorted. So it does not depend on the
layout, the order, the sharding or the metadata of the files, nor on the precision that the model
is loaded in. It does depend on the precision of the file: a model rounded to float16 is another.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from sdxl_core.nets.layouts import Slot, diffusers_slots, network_shapes
from sdxl_core.nets.safetensors_file import DTYPE_NAMES, tensor_bytes


class Digest:
    """Takes the tensors of a model in any order and gives their common hash."""

    def __init__(self, slots_by_component: Mapping[str, Iterable[Slot]]) -> None:
        self._slots: dict[tuple[str, str], list[Slot]] = defaultdict(list)
        for slots in slots_by_component.values():
            for slot in slots:
                self._slots[slot.component, slot.network_name].append(slot)
        self._lines: list[str] = []

    def add_network_tensor(self, component: str, name: str, tensor: torch.Tensor) -> None:
        """Takes a whole tensor of a network, in its stored dtype."""
        for slot in self._slots[component, name]:
            self.add_stored_tensor(component, slot.stored_name, slot.view(tensor))

    def add_stored_tensor(self, component: str, stored_name: str, tensor: torch.Tensor) -> None:
        """Takes a tensor under its name in the diffusers layout, in its stored dtype and shape."""
        sha256 = hashlib.sha256(tensor_bytes(tensor).numpy().data).hexdigest()
        shape = "x".join(map(str, tensor.shape))
        self._lines.append(
            f"{component} {stored_name} {DTYPE_NAMES[tensor.dtype]} {shape} {sha256}"
        )

    def hexdigest(self) -> str:
        """Returns 64 hexadecimal digits."""
        return hashlib.sha256("\n".join(sorted(self._lines)).encode()).hexdigest()


def networks_digest(
    networks: Mapping[str, nn.Module], *, dtypes: Mapping[str, torch.dtype] | None = None
) -> str:
    """Returns the digest that ``networks`` would have in a file.

    Args:
        networks: by component, as ``SdxlModel.networks``.
        dtypes: precision in the file by ``component/name``; absent means as in memory.
    """
    digest = Digest(diffusers_slots(network_shapes(networks)))
    for component, network in networks.items():
        for name, tensor in network.state_dict().items():
            dtype = (dtypes or {}).get(f"{component}/{name}", tensor.dtype)
            digest.add_network_tensor(component, name, tensor.to(dtype))
    return digest.hexdigest()
