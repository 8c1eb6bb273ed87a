"""Where DeepSpeed keeps a worker's share of each parameter, at every stage of ZeRO."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Where this worker's share of one parameter lies in its flat tensors.

    Args:
        name: of the parameter in its network.
        start: first element of the parameter that this worker holds.
        num_elements: how many it holds, > 0.
        flat: float32 weights of a group of parameters, this worker's share.
        offset: of this parameter's elements in it.
    """

    name: str
    start: int
    num_elements: int
    flat: Tensor
    offset: int

    def view(self, flat: Tensor) -> Tensor:
        """The share within ``flat``, or within a tensor that is laid out like it."""
        return flat.data.narrow(0, self.offset, self.num_elements)


def places_of(engine: Any) -> Iterator[Place]:
    """Where this worker's shares of all trained parameters lie in the tensors of DeepSpeed."""
    zero = engine.optimizer
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):  # stage 3: equal shares of each parameter, the last padded
            group, offset, share = zero.grad_position[zero.get_param_id(parameter)]
            start = dist.get_rank() * share
            num_elements = max(0, min(share, parameter.ds_numel - start))
            flat = zero.fp32_partitioned_groups_flat[group]
        elif parameter._hp_mapping is None:  # all of it is another worker's
            continue
        else:
            mapping = parameter._hp_mapping
            start = mapping.lp_fragment_address.start
            num_elements = mapping.lp_fragment_address.numel
            flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
            offset = mapping.hp_fragment_address.start
        if num_elements:
            yield Place(name=name, start=start, num_elements=num_elements, flat=flat, offset=offset)
