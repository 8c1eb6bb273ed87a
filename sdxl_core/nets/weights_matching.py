"""Pairs every tensor of a model's files with its slot, or lists all that do not fit."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.layout_names import canonical_diffusers_name
from sdxl_core.nets.layouts import (
    Shapes,
    Slot,
    diffusers_slots,
    single_file_prefixes,
    single_file_slots,
)
from sdxl_core.nets.safetensors_file import StoredTensor
from sdxl_core.nets.weights_source import WeightsFile, WeightsSource, ignored_names

NUM_LISTED = 20
"""Names of each kind that an error lists."""

_Key = tuple[str | None, str]
"""Component (None in a single file) and stored name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filling:
    """One stored tensor and the place that it fills."""

    file: WeightsFile
    tensor: StoredTensor
    slot: Slot


def match_tensors(source: WeightsSource, shapes: Shapes) -> list[Filling]:
    """Returns a filling for every tensor, file by file in the order of its bytes.

    Args:
        source: opened files.
        shapes: of the networks that they must fill; what belongs to other networks is passed over.

    Raises:
        WeightsError: if tensors are missing, surplus or misshapen in any file; they are listed.
    """
    slots = _slots(source, shapes)
    fillings, extra, misshapen = [], [], []
    for file, tensor, key in _stored_tensors(source, shapes):
        slot = slots.pop(key, None)
        if slot is None:
            extra.append(f"{file.path}: {tensor.name}")
        elif tensor.shape != slot.stored_shape or not tensor.dtype.is_floating_point:
            misshapen.append(
                f"{file.path}: {tensor.name} is {tensor.dtype} {list(tensor.shape)},"
                f" expected {list(slot.stored_shape)}"
            )
        else:
            fillings.append(Filling(file=file, tensor=tensor, slot=slot))
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


def _slots(source: WeightsSource, shapes: Shapes) -> dict[_Key, Slot]:
    if source.is_single_file:
        return {(None, slot.stored_name): slot for slot in single_file_slots(source.preset, shapes)}
    return {
        (component, slot.stored_name): slot
        for component, slots in diffusers_slots(shapes).items()
        for slot in slots
    }


def _stored_tensors(
    source: WeightsSource, components: Collection[str]
) -> Iterator[tuple[WeightsFile, StoredTensor, _Key]]:
    others = tuple(
        prefix
        for component, prefix in single_file_prefixes(source.preset).items()
        if component not in components
    )
    for file in source.files:
        ignored = ignored_names(file, source.preset)
        for tensor in file.header.tensors:
            name = tensor.name
            if name in ignored or (file.component is None and name.startswith(others)):
                continue
            if file.component is not None:
                name = canonical_diffusers_name(file.component, name)
            yield file, tensor, (file.component, name)


def _listed(kind: str, names: Sequence[str]) -> str:
    shown = "".join(f"\n  {kind}: {name}" for name in names[:NUM_LISTED])
    num_more = len(names) - NUM_LISTED
    return shown if num_more <= 0 else f"{shown}\n  {kind}: and {num_more} more"
