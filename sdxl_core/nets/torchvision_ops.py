"""Lets open_clip, diffusers and transformers import where torchvision has no compiled operators.

The torchvision wheel on PyPI is linked against the CUDA build of torch. Beside a CPU build of torch
its operator library does not load, and ``import torchvision`` then fails while registering shape
functions for ``torchvision::nms``. Nothing here calls those operators; declaring them is enough for
the import to work.
"""

import importlib.util

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing_torchvision_ops() -> None:
    """Declares ``torchvision::nms`` and ``torchvision::qnms`` if no library has. Safe to call many
    times.

    Call it before the first import of open_clip, diffusers or transformers. It does nothing when
    torchvision is absent or its own operators load, so a CUDA installation is never touched.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or hasattr(torch.ops.torchvision, "nms"):
        return
    try:
        importlib.import_module("torchvision.extension")
    except RuntimeError:
        pass  # the very failure that this module mends
    if not hasattr(torch.ops.torchvision, "nms"):
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", _SCHEMA)
