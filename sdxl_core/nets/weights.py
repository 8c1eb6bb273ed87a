"""Loads a model from either layout, strictly, one tensor at a time.

The networks are built without memory, given memory once in the wanted precision, and filled tensor
by tensor from files that are read in order, so the peak is the model plus its largest tensor.
Nothing is guessed: a missing, surplus or misshapen tensor is an error that lists it. Only
safetensors are read; a pickle is refused.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.build import build_networks
from sdxl_core.nets.digest import Digest
from sdxl_core.nets.layout_names import canonical_diffusers_name
from sdxl_core.nets.layouts import (
    Shapes,
    Slot,
    diffusers_slots,
    network_shapes,
    single_file_slots,
)
from sdxl_core.nets.model import (
    SdxlModel,
    check_vae_preset_dtype,
    default_vae_dtype,
    model_of,
)
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.nets.safetensors_file import StoredTensor, read_tensor
from sdxl_core.nets.weights_export import export_model
from sdxl_core.nets.weights_source import (
    WeightsFile,
    WeightsSource,
    ignored_names,
    open_source,
)

__all__ = ["export_model", "load_model", "model_identity"]

_NUM_LISTED = 20
"""Names of each kind that an error lists."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Filling:
    """One stored tensor and the place that it fills."""

    file: WeightsFile
    tensor: StoredTensor
    slot: Slot


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
        components: load only these networks (names of the folders in the diffusers layout); the
            others stay without memory and cannot be run. None loads all.

    Returns:
        The model in evaluation mode. Its digest is of the tensors as stored, whatever ``dtype``;
        it is "" unless all components are loaded.

    Raises:
        WeightsError: if the files are not a whole SDXL model; keys are listed.
        ConfigError: if ``vae_dtype`` is one that this autoencoder cannot run in.
        StoreError: if the files cannot be read.
    """
    source = open_source(path_or_name, variant=variant)
    preset = source.preset
    if vae_dtype is None:
        vae_dtype = default_vae_dtype(preset, dtype)
    check_vae_preset_dtype(preset, vae_dtype)

    networks = _networks_without_memory(source)
    fillings = _match(source, network_shapes(networks))
    wanted = {
        component: network
        for component, network in networks.items()
        if components is None or component in components
    }
    for component, network in wanted.items():
        # Torch's own `to`: that of diffusers warns about a cast that here is of empty tensors.
        nn.Module.to(network, dtype=vae_dtype if component == "vae" else dtype)
        network.to_empty(device=device)
    _restore_buffers(wanted)
    fillings = [filling for filling in fillings if filling.slot.component in wanted]
    digest = Digest(diffusers_slots(network_shapes(networks)))
    stored_dtypes = _fill(wanted, fillings, digest)
    return dataclasses.replace(
        model_of(preset, networks),
        **source.settings.values(),
        digest=digest.hexdigest() if components is None else "",
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
    networks = _networks_without_memory(source)
    shapes = network_shapes(networks)
    digest = Digest(diffusers_slots(shapes))
    _fill({}, _match(source, shapes), digest, shapes=shapes)
    return source.preset, digest.hexdigest()


def _networks_without_memory(source: WeightsSource) -> dict[str, nn.Module]:
    try:
        with torch.device("meta"):
            return build_networks(source.preset)
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


def _match(source: WeightsSource, shapes: Shapes) -> list[_Filling]:
    """Pairs every stored tensor with its slot, or lists all that do not fit."""
    slots = _slots(source.preset, shapes, is_single_file=source.is_single_file)
    fillings, extra, misshapen = [], [], []
    for file, tensor, key in _stored_tensors(source):
        slot = slots.pop(key, None)
        if slot is None:
            extra.append(f"{file.path}: {tensor.name}")
        elif tensor.shape != slot.stored_shape or not tensor.dtype.is_floating_point:
            misshapen.append(
                f"{file.path}: {tensor.name} is {tensor.dtype} {list(tensor.shape)},"
                f" expected {list(slot.stored_shape)}"
            )
        else:
            fillings.append(_Filling(file=file, tensor=tensor, slot=slot))
    missing = [name if component is None else f"{component}: {name}" for component, name in slots]
    if missing or extra or misshapen:
        raise WeightsError(
            f"{source.url}: the tensors are not those of {source.preset.name!r}"
            f" ({source.preset.kind}): {len(missing)} missing, {len(extra)} extra,"
            f" {len(misshapen)} misshapen"
            + _listed("missing", missing)
            + _listed("extra", extra)
            + _listed("misshapen", misshapen)
        )
    return fillings


def _slots(
    preset: ModelPreset, shapes: Shapes, *, is_single_file: bool
) -> dict[tuple[str | None, str], Slot]:
    """The slots to fill, by component (None in a single file) and stored name."""
    if is_single_file:
        return {(None, slot.stored_name): slot for slot in single_file_slots(preset, shapes)}
    return {
        (component, slot.stored_name): slot
        for component, slots in diffusers_slots(shapes).items()
        for slot in slots
    }


def _stored_tensors(
    source: WeightsSource,
) -> Iterator[tuple[WeightsFile, StoredTensor, tuple[str | None, str]]]:
    for file in source.files:
        ignored = ignored_names(file, source.preset)
        for tensor in file.header.tensors:
            if tensor.name in ignored:
                continue
            name = tensor.name
            if file.component is not None:
                name = canonical_diffusers_name(file.component, name)
            yield file, tensor, (file.component, name)


def _listed(kind: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = "".join(f"\n  {kind}: {name}" for name in names[:_NUM_LISTED])
    num_more = len(names) - _NUM_LISTED
    return shown if num_more <= 0 else f"{shown}\n  {kind}: and {num_more} more"


def _fill(
    networks: Mapping[str, nn.Module],
    fillings: Sequence[_Filling],
    digest: Digest,
    *,
    shapes: Shapes | None = None,
) -> dict[str, torch.dtype]:
    """Reads the tensors into those networks that are given, and into the digest.

    Returns:
        The stored precision of every tensor.
    """
    shapes = network_shapes(networks) if shapes is None else shapes
    targets = {component: network.state_dict() for component, network in networks.items()}
    stored_dtypes: dict[str, torch.dtype] = {}
    for file in dict.fromkeys(filling.file for filling in fillings):
        with file.store.open_read(file.path) as opened:
            for filling in fillings:
                if filling.file is not file:
                    continue
                slot = filling.slot
                stored = read_tensor(opened, filling.tensor, url=file.url)
                if file.component is None:
                    whole = stored.view(shapes[slot.component][slot.network_name])
                    digest.add_network_tensor(slot.component, slot.network_name, whole)
                else:
                    digest.add_stored_tensor(slot.component, slot.stored_name, stored)
                if slot.component in targets:
                    slot.view(targets[slot.component][slot.network_name]).copy_(stored)
                _note_dtype(stored_dtypes, slot, stored.dtype, url=file.url)
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
