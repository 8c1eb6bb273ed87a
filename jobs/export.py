"""Writes a model in another layout or precision.

Left: a diffusers folder, a single safetensors file, an embedded model by name, or a checkpoint of
``sdxl train``. Right: the same weights as a diffusers folder (plain diffusers loads it) or as one
file in the layout of the released models; or the adapter that was trained, alone. Nothing is
repaired on the way: a missing or surplus tensor is an error that names it. To run it:

    sdxl export tiny out/tiny.safetensors --layout single-file --dtype float16
"""

import dataclasses
import json
import logging
import time
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from sdxl_core.contract.config import Location, config
from sdxl_core.contract.errors import ConfigError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@config
class ExportConfig:
    """Write a model in another layout or precision."""

    checkpoint: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Diffusers folder, .safetensors file, embedded model, or output of train; local or s3://."""

    out: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder (diffusers, lora) or .safetensors file (single-file) to write; local or s3://."""

    layout: Literal["diffusers", "single-file", "lora"]
    """Form of the output; lora: a training checkpoint's adapter, in diffusers' and kohya's form."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Precision of the tensors in the output; None keeps that of each tensor in its file."""

    variant: str | None = None
    """Read files of this variant of a diffusers folder, for example fp16."""

    weights: Literal["ema", "raw"] = "ema"
    """Of a training checkpoint: the running mean of the weights, or the last ones."""

    model: str | None = None
    """Of a training checkpoint: the model it was trained from, if it is not any more where it was.
    """

    def __post_init__(self) -> None:
        is_file = self.out.endswith(".safetensors")
        if is_file != (self.layout == "single-file"):
            expected = "a folder" if is_file else "a name that ends in .safetensors"
            raise ConfigError(f"out: layout {self.layout} needs {expected}, got {self.out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What was written, and the digest that names the weights on every row they produce."""

    out: str
    layout: str
    dtype: str | None
    model_kind: str
    source_digest: str
    seconds: float
    exit_code: int = 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))


def run(config: ExportConfig) -> ExportSummary:
    """Reads ``config.checkpoint`` strictly and writes it to ``config.out``.

    Raises:
        WeightsError: the checkpoint is missing, incomplete, or has tensors that do not fit.
    """
    import torch  # late: `sdxl export --help` and a wrong flag need not wait for it

    from sdxl_core.nets.weights import export_model, load_model
    from sdxl_core.training.checkpoint_export import is_checkpoint, model_of_checkpoint

    started = time.monotonic()
    dtype: torch.dtype | None = None if config.dtype is None else getattr(torch, config.dtype)
    if config.layout == "lora":
        return _export_lora(config, dtype or torch.float32, started)
    if is_checkpoint(config.checkpoint):
        model = model_of_checkpoint(config.checkpoint, weights=config.weights, model=config.model)
    else:
        model = load_model(config.checkpoint, variant=config.variant)
    export_model(model, config.out, layout=config.layout, dtype=dtype)
    logger.info("wrote %s as %s, %s", config.out, config.layout, config.dtype or "precision kept")
    return ExportSummary(
        out=config.out,
        layout=config.layout,
        dtype=config.dtype,
        model_kind=model.kind,
        source_digest=model.digest,
        seconds=round(time.monotonic() - started, 3),
    )


def _export_lora(config: ExportConfig, dtype: "torch.dtype", started: float) -> ExportSummary:
    from sdxl_core.training.checkpoint_export import is_checkpoint
    from sdxl_core.training.checkpoint_store import open_checkpoint
    from sdxl_core.training.lora_export import export_lora

    if not is_checkpoint(config.checkpoint):
        raise ConfigError(
            f"layout lora: {config.checkpoint} is no training checkpoint, expected the output of "
            "`sdxl train --lora-rank N`"
        )
    export_lora(
        config.checkpoint, config.out, weights=config.weights, model=config.model, dtype=dtype
    )
    logger.info("wrote the adapter to %s, for diffusers and in kohya's naming", config.out)
    model = open_checkpoint(config.checkpoint)[1].model
    return ExportSummary(
        out=config.out,
        layout=config.layout,
        dtype=config.dtype,
        model_kind=model["kind"],
        source_digest=model["digest"],
        seconds=round(time.monotonic() - started, 3),
    )
