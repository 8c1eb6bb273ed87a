"""SDXL in plain torch: what a notebook needs. ``docs/api.md`` says what each name is.

Names are imported when they are first used, so that ``import sdxl_core`` costs nothing and does
nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdxl_core.contract.errors import RowError, SdxlError
    from sdxl_core.contract.request import PromptDefaults, Request
    from sdxl_core.diffusion.engine import Engine
    from sdxl_core.diffusion.generate import GeneratedImage, generate
    from sdxl_core.diffusion.samplers import make_step_table
    from sdxl_core.nets.model import random_model
    from sdxl_core.nets.presets import get_preset
    from sdxl_core.nets.weights import load_model
    from sdxl_core.nets.weights_export import export_model
    from sdxl_core.storage.image_files import decode_image, encode_image, read_parameters
    from sdxl_core.storage.stores import open_store

__all__ = [
    "Engine",
    "GeneratedImage",
    "PromptDefaults",
    "Request",
    "RowError",
    "SdxlError",
    "decode_image",
    "encode_image",
    "export_model",
    "generate",
    "get_preset",
    "load_model",
    "make_step_table",
    "open_store",
    "random_model",
    "read_parameters",
]

_MODULES = {
    "Engine": "diffusion.engine",
    "GeneratedImage": "diffusion.generate",
    "PromptDefaults": "contract.request",
    "Request": "contract.request",
    "RowError": "contract.errors",
    "SdxlError": "contract.errors",
    "decode_image": "storage.image_files",
    "encode_image": "storage.image_files",
    "export_model": "nets.weights_export",
    "generate": "diffusion.generate",
    "get_preset": "nets.presets",
    "load_model": "nets.weights",
    "make_step_table": "diffusion.samplers",
    "open_store": "storage.stores",
    "random_model": "nets.model",
    "read_parameters": "storage.image_files",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sdxl_core' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sdxl_core.{_MODULES[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
