"""Loads a model from either layout, strictly, one tensor at a time.

The networks are built without memory, given memory once in the wanted precision, and filled tensor
by tensor from files that are read in order, so the peak is the model plus its largest tensor.
Nothing is guessed: a missing, surplus or misshapen tensor is an error that lists it. Only
safetensors are read; a pickle is refused.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from sdxl_core.contract.errors import ConfigError, WeightsError
from sdxl_core.nets.components import network_builders
from sdxl_core.nets.digest import Digest
from sdxl_core.nets.layouts import Shapes, Slot, diffusers_slots, network_shapes
from sdxl_core.nets.model import (
    SdxlModel,
    check_vae_preset_dtype,
    default_vae_dtype,
    model_of,
)
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.nets.safetensors_file import read_tensor
from sdxl_core.nets.weights_export import export_model
from sdxl_core.nets.weights_matching import Filling, match_tensors
from sdxl_core.nets.weights_source import FILE_STEMS, WeightsSource, open_source

__all__ = ["export_model", "load_model", "model_identity"]


def load_model(
    path_or_name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    variant: str | None = None,
    vae_dtype: torch.dtype | None = None,
    components: Collection[str] | None = None,
) -> SdxlModel:
    """Loads a base or a refiner.

    Args:
        path_or_name: ``tiny`` or ``tiny-refiner`` (embedded); a diffusers folder; or one
            ``.safetensors`` file in the layout of the released models. Local or ``s3://``, which is
            streamed and not kept.
        dtype: precision of the UNet and the text encoders in memory.
        device: where the networks go.
        variant: of the files in a diffusers folder, for example ``fp16``.
        vae_dtype: precision of the autoencoder; None means ``dtype``, or float32 where that would
            overflow.
        components: load only these networks (names of the folders in the diffusers layout). The
            files and libraries of the others are left alone, so they are not checked either, and
            they are ``NotLoaded`` in the model. None loads all.

    Returns:
        The model in evaluation mode. Its digest is of the tensors as stored, whatever ``dtype``;
        it is "" unless all components are loaded.

    Raises:
        WeightsError: if the files are not a whole SDXL model, as far as it is loaded; keys are
            listed.
        ConfigError: if ``vae_dtype`` is one that this autoencoder cannot run in.
        StoreError: if the files cannot be read.
    """
    _check_components(components)
    source = open_source(path_or_name, variant=variant, components=components)
    preset = source.preset
    if vae_dtype is None:
        vae_dtype = default_vae_dtype(preset, dtype)
    check_vae_preset_dtype(preset, vae_dtype)

    networks = _networks_without_memory(source, components)
    shapes = network_shapes(networks)
    fillings = match_tensors(source, shapes)
    for component, network in networks.items():
        # Torch's own `to`: that of diffusers warns about a cast that here is of empty tensors.
        nn.Module.to(network, dtype=vae_dtype if component == "vae" else dtype)
        network.to_empty(device=device)
    _restore_buffers(networks)
    digest = Digest(diffusers_slots(shapes)) if components is None else None
    stored_dtypes = _read_tensors(fillings, shapes=shapes, networks=networks, digest=digest)
    return dataclasses.replace(
        model_of(preset, networks),
        **source.settings.values(),
        digest=digest.hexdigest() if digest else "",
        stored_dtypes=stored_dtypes,
    )


def model_identity(
    path_or_name: str | Path, *, variant: str | None = None
) -> tuple[ModelPreset, str]:
    """Returns the sizes and the digest of a model, holding one tensor at a time.

    Raises:
        WeightsError: as ``load_model``.
    """
    source = open_source(path_or_name, variant=variant)
    shapes = network_shapes(_networks_without_memory(source, None))
    digest = Digest(diffusers_slots(shapes))
    _read_tensors(match_tensors(source, shapes), shapes=shapes, networks={}, digest=digest)
    return source.preset, digest.hexdigest()


def _check_components(components: Collection[str] | None) -> None:
    unknown = sorted(set(components or ()) - FILE_STEMS.keys())
    if unknown:
        raise ConfigError(f"components: found {unknown}, expected some of {', '.join(FILE_STEMS)}")


def _networks_without_memory(
    source: WeightsSource, components: Collection[str] | None
) -> dict[str, nn.Module]:
    builders = network_builders(source.preset, components)
    try:
        with torch.device("meta"):
            return {component: build(source.preset) for component, build in builders.items()}
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        # The sizes come from a file; the libraries say in many ways that they make no network.
        raise WeightsError(f"{source.url}: its sizes make no network: {error}") from error


def _restore_buffers(networks: Mapping[str, nn.Module]) -> None:
    """Fills the constants that networks hold beside their weights and that no file has."""
    for component, network in networks.items():
        stored = network.state_dict().keys()
        for name, buffer in network.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
            elif name == "attn_mask":
                buffer.copy_(torch.full(buffer.shape, float("-inf")).triu(1))
            elif name not in stored:
                raise WeightsError(
                    f"{component}: this version of its library has an unknown {name}"
                )


def _read_tensors(
    fillings: Sequence[Filling],
    *,
    shapes: Shapes,
    networks: Mapping[str, nn.Module],
    digest: Digest | None,
) -> dict[str, torch.dtype]:
    """Reads tensors into those networks that are given, and into the digest if there is one.

    Returns:
        The stored precision of every tensor that was read.
    """
    targets = {component: network.state_dict() for component, network in networks.items()}
    stored_dtypes: dict[str, torch.dtype] = {}
    for file in dict.fromkeys(filling.file for filling in fillings):
        with file.store.open_read(file.path) as opened:
            for filling in fillings:
                if filling.file is not file:
                    continue
                slot = filling.slot
                stored = read_tensor(opened, filling.tensor, url=file.url)
                _note_dtype(stored_dtypes, slot, stored.dtype, url=file.url)
                if slot.component in targets:
                    slot.view(targets[slot.component][slot.network_name]).copy_(stored)
                if digest is None:
                    continue
                if file.component is None:
                    whole = stored.view(shapes[slot.component][slot.network_name])
                    digest.add_network_tensor(slot.component, slot.network_name, whole)
                else:
                    digest.add_stored_tensor(slot.component, slot.stored_name, stored)
    return stored_dtypes


def _note_dtype(
    stored_dtypes: dict[str, torch.dtype], slot: Slot, dtype: torch.dtype, *, url: str
) -> None:
    key = f"{slot.component}/{slot.network_name}"
    if stored_dtypes.setdefault(key, dtype) != dtype:
        raise WeightsError(
            f"{url}: {slot.stored_name} is {dtype}, expected {stored_dtypes[key]} as the other"
            " parts of its projection"
        )
