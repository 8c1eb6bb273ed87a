"""Writes a model in the diffusers layout, or as one file in the layout of the released models.

An export is a function of the weights, the sizes and the sampling settings alone: exporting what
was loaded from an export gives the same bytes, whichever way round.
"""

import functools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import torch

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.layouts import Slot, diffusers_slots, network_shapes, single_file_slots
from sdxl_core.nets.model import NotLoaded, SdxlModel
from sdxl_core.nets.model_configs import component_configs, preset_to_json
from sdxl_core.nets.pipeline_configs import model_index, scheduler_config, settings_of
from sdxl_core.nets.safetensors_file import TensorToWrite, write_safetensors
from sdxl_core.nets.tokenizer_files import tokenizer_files
from sdxl_core.nets.weights_source import FILE_STEMS, METADATA_KEY
from sdxl_core.storage.local_store import LocalStore
from sdxl_core.storage.store_errors import local_error
from sdxl_core.storage.stores import Store, open_file, open_store

Layout = Literal["diffusers", "single-file"]

# transformers refuses a safetensors file that does not name its framework.
_FORMAT = {"format": "pt"}


def export_model(
    model: SdxlModel,
    out: str | Path,
    *,
    layout: Layout = "diffusers",
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> None:
    """Writes ``model`` to ``out``.

    Args:
        model: a base or a refiner, loaded or trained.
        out: a folder (diffusers) or a ``.safetensors`` file (single-file), local or ``s3://``.
            Files that are there already are replaced; each appears whole or not at all.
        layout: ``diffusers`` loads in plain diffusers; ``single-file`` is the released layout.
        dtype: precision of every tensor in the files. None keeps the precision in which each was
            stored when the model was loaded, so nothing is lost if it was loaded in a wider one.
        variant: goes into the names of the weights files of a diffusers folder (``fp16``).

    Raises:
        ConfigError: if the arguments do not go together, or the model is not wholly loaded.
        StoreError: if ``out`` cannot be written.
    """
    if layout not in get_args(Layout):
        raise ConfigError(f"layout: found {layout!r}, expected one of {get_args(Layout)}")
    is_single_file = layout == "single-file"
    if is_single_file != str(out).endswith(".safetensors"):
        expected = "a file ending in .safetensors" if is_single_file else "a folder"
        raise ConfigError(f"export to {out}: layout {layout} needs {expected}")
    if is_single_file and variant is not None:
        raise ConfigError(f"variant {variant!r}: a single file has no variants; leave it out")
    for component, network in model.networks.items():
        is_meta = any(tensor.is_meta for tensor in network.state_dict().values())
        if is_meta or isinstance(network, NotLoaded):
            raise ConfigError(f"export to {out}: {component} was not loaded; load all components")
    if is_single_file:
        _export_single_file(model, str(out), dtype)
    else:
        _export_folder(model, open_store(out), dtype, variant)


def _export_single_file(model: SdxlModel, out: str, dtype: torch.dtype | None) -> None:
    store, path = open_file(out)
    slots = single_file_slots(model.preset, network_shapes(model.networks))
    description = {
        "preset": preset_to_json(model.preset),
        "sampling": settings_of(model).values(),
    }
    with _new_file(store, path) as file:
        write_safetensors(
            file,
            _tensors(model, slots, dtype),
            metadata={**_FORMAT, METADATA_KEY: json.dumps(description, sort_keys=True)},
        )


def _export_folder(
    model: SdxlModel, store: Store, dtype: torch.dtype | None, variant: str | None
) -> None:
    infix = "" if variant is None else f".{variant}"
    for component, slots in diffusers_slots(network_shapes(model.networks)).items():
        path = f"{component}/{FILE_STEMS[component]}{infix}.safetensors"
        with _new_file(store, path) as file:
            write_safetensors(file, _tensors(model, slots, dtype), metadata=_FORMAT)
    for component, config in component_configs(model.preset).items():
        _write_json(store, f"{component}/config.json", config)
    settings = settings_of(model)
    _write_json(store, "scheduler/scheduler_config.json", scheduler_config(settings))
    for folder in ("tokenizer", "tokenizer_2")[model.kind == "refiner" :]:
        for name, text in tokenizer_files(folder).items():
            store.write_bytes(f"{folder}/{name}", text.encode())
    # Last: a folder without it is not a model, so a killed export leaves none.
    _write_json(store, "model_index.json", model_index(model.kind, settings))


def _tensors(
    model: SdxlModel, slots: Sequence[Slot], dtype: torch.dtype | None
) -> list[TensorToWrite]:
    networks = {component: network.state_dict() for component, network in model.networks.items()}
    tensors = []
    for slot in slots:
        tensor = networks[slot.component][slot.network_name]
        key = f"{slot.component}/{slot.network_name}"
        written_dtype = dtype or model.stored_dtypes.get(key, tensor.dtype)
        tensors.append(
            TensorToWrite(
                name=slot.stored_name,
                dtype=written_dtype,
                shape=slot.stored_shape,
                # Converted when it is written, so that one copy exists at a time.
                read=functools.partial(slot.view(tensor).to, written_dtype),
            )
        )
    return tensors


@contextmanager
def _new_file(store: Store, path: str) -> Iterator[BinaryIO]:
    """A local file that becomes ``path`` of the store when the block ends well."""
    try:
        folder = None
        if isinstance(store, LocalStore):  # beside the target: /tmp may be small
            folder = store.url
            os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as temporary:
            local_path = Path(temporary, "weights")
            with open(local_path, "wb") as file:
                yield file
            store.upload(local_path, path)
    except OSError as error:
        raise local_error(error, action="write", url=store.join(path)) from error


def _write_json(store: Store, path: str, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    store.write_bytes(path, text.encode())
