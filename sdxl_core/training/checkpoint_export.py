"""The model that a training checkpoint stands for: its weights, and the networks around them."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from sdxl_core.contract.errors import ConfigError, WeightsError
from sdxl_core.nets.model import SdxlModel, trained_as
from sdxl_core.nets.weights import load_model
from sdxl_core.storage.stores import open_store
from sdxl_core.training.autoencoder_network import autoencoder_parameters
from sdxl_core.training.checkpoint_store import (
    COMMIT_FILE,
    CheckpointRecord,
    committed_steps,
    fetch_states,
    open_checkpoint,
    step_folder,
)
from sdxl_core.training.lora import lora_of_parameters
from sdxl_core.training.lora_files import merge_lora
from sdxl_core.training.pieces import PieceReader, read_parameters

WhichWeights = Literal["ema", "raw"]

_KINDS = {"ema": "average", "raw": "master"}


def is_checkpoint(url: str) -> bool:
    """Is ``url`` the output of ``sdxl train`` with a checkpoint in it, or one checkpoint."""
    if url.endswith(".safetensors"):
        return False
    store = open_store(url)
    return store.exists(COMMIT_FILE) or bool(committed_steps(store))


def model_of_checkpoint(
    url: str, *, weights: WhichWeights = "ema", model: str | None = None
) -> SdxlModel:
    """The trained model with all its networks, on the CPU.

    Args:
        url: output of ``sdxl train``, for its newest checkpoint, or one ``step-...`` folder in it.
        weights: the running mean, or the weights as the last step left them.
        model: where the other networks are, if they are not any more where training found them.

    Returns:
        The model; the trained network's tensors are float32, the others as they were stored. An
        adapter is added to the weights that it was trained beside.

    Raises:
        ConfigError: there is no checkpoint, or the model is another.
        WeightsError: the model is not there, or does not have the checkpoint's parameters.
        StoreError: a file of the checkpoint is missing or damaged.
    """
    run, record = open_checkpoint(url)
    path = model or record.model["path"]
    try:
        whole = load_model(path, variant=record.model.get("variant") if model is None else None)
    except WeightsError as error:
        raise WeightsError(
            f"{url}: the networks around the trained one are not at {path} any more: {error}. Say "
            "where they are: --model"
        ) from error
    if whole.digest != record.model["digest"]:
        raise ConfigError(
            f"{path}: is not the model that {url} was trained with: found the digest "
            f"{whole.digest[:16]}, expected {record.model['digest'][:16]}"
        )
    trained = read_trained(run, record, weights=weights)
    component, lora = record.model.get("network", "unet"), record.model.get("lora")
    where = f"{run}/{step_folder(record.step)}"
    if lora:
        merge_lora(whole.unet, lora_of_parameters(trained, rank=lora["rank"], alpha=lora["alpha"]))
    elif component == "vae":
        _fill(whole.vae, autoencoder_parameters(trained), where=where)
    else:
        _fill(whole.unet, trained, where=where)
    dtypes = {
        name: dtype
        for name, dtype in whole.stored_dtypes.items()
        if not name.startswith(f"{component}/")
    }
    if component == "unet":
        whole = trained_as(
            whole,
            prediction_type=record.model["prediction_type"],
            zero_terminal_snr=record.model.get("zero_terminal_snr", False),
        )
    return dataclasses.replace(whole, stored_dtypes=dtypes, digest="")


def read_trained(
    run: str, record: CheckpointRecord, *, weights: WhichWeights
) -> dict[str, torch.Tensor]:
    """The parameters that were trained, by name, float32 on the CPU.

    Args:
        run: URL of the run's output.
        record: of the checkpoint.
        weights: the running mean, or the weights as the last step left them.

    Raises:
        WeightsError: some are missing.
        StoreError: a file of the checkpoint is missing or damaged.
    """
    with tempfile.TemporaryDirectory(prefix="sdxl-export-") as folder:
        files = fetch_states(open_store(run), record, Path(folder))
        return read_parameters(PieceReader(files), record.shapes, kind=_KINDS[weights])


@torch.no_grad()
def _fill(network: nn.Module, trained: dict[str, torch.Tensor], *, where: str) -> None:
    parameters = dict(network.named_parameters())
    if parameters.keys() != trained.keys():
        different = sorted(parameters.keys() ^ trained.keys())
        raise WeightsError(
            f"{where}: {len(different)} parameters do not fit the model: {', '.join(different[:5])}"
        )
    for name, parameter in parameters.items():
        if parameter.shape != trained[name].shape:
            raise WeightsError(
                f"{where}: {name} has the shape {tuple(trained[name].shape)}, expected "
                f"{tuple(parameter.shape)}"
            )
        parameter.copy_(trained[name])
