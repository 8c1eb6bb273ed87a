"""The adapter that a training checkpoint holds, as the two files that the usual tools read."""

import tempfile
from pathlib import Path

import torch

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.weights import load_model
from sdxl_core.storage.stores import open_store
from sdxl_core.training.checkpoint_export import WhichWeights, read_trained
from sdxl_core.training.checkpoint_store import open_checkpoint
from sdxl_core.training.lora import lora_of_parameters
from sdxl_core.training.lora_files import write_diffusers_lora, write_kohya_lora

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "kohya.safetensors"


def export_lora(
    url: str,
    out: str | Path,
    *,
    weights: WhichWeights = "ema",
    model: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a checkpoint's adapter to a folder, in diffusers' and in kohya's naming.

    Args:
        url: output of ``sdxl train --lora-rank``, for its newest checkpoint, or one ``step-...``
            folder in it.
        out: the folder, local or ``s3://``; diffusers' ``load_lora_weights`` takes it as it is.
        weights: the running mean, or the weights as the last step left them.
        model: the model that it was trained beside, if it is not any more where training found it;
            its sizes are read, not its weights.
        dtype: of the files.

    Raises:
        ConfigError: there is no checkpoint, or it has no adapter.
        WeightsError: the model is not there, or the checkpoint's parameters are no adapter's.
        StoreError: a file cannot be read or written.
    """
    run, record = open_checkpoint(url)
    settings = record.model.get("lora")
    if not settings:
        raise ConfigError(
            f"{url}: found a whole network, expected an adapter of `sdxl train --lora-rank N`; use "
            "the layout diffusers or single-file"
        )
    variant = record.model.get("variant") if model is None else None
    preset = load_model(model or record.model["path"], variant=variant, components=()).preset
    lora = lora_of_parameters(
        read_trained(run, record, weights=weights), rank=settings["rank"], alpha=settings["alpha"]
    )
    blocks = preset.unet.up_block_types
    store = open_store(out)
    with tempfile.TemporaryDirectory(prefix="sdxl-lora-") as folder:
        local = Path(folder)
        write_kohya_lora(local / KOHYA_FILE, lora, up_block_types=blocks, dtype=dtype)
        write_diffusers_lora(local / DIFFUSERS_FILE, lora, dtype=dtype)
        for name in (KOHYA_FILE, DIFFUSERS_FILE):
            store.upload(local / name, name)
