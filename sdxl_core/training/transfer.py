"""Host to device, without the host waiting for what the device has still to do."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Returns the tensor on a device; on its own device it is the tensor itself.

    A copy out of pageable memory may wait until everything launched before is done, even with
    ``non_blocking`` (CUDA Runtime API, "API synchronization behavior"); one out of pinned memory
    does not. torch uses pinned memory again, and not before the copy is through.

    Args:
        tensor: in the memory of the host.
        device: where to.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
