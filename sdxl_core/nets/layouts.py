"""Which tensor of a file is which part of which network, in both layouts.

A ``Slot`` ties one stored tensor to one tensor of a network; the same slots read a file, write one
and name tensors for the digest. What differs between layouts beside names:

* text encoder 2 has one fused query-key-value projection in the single file and in open_clip's
  network, three in the diffusers layout, and its ``text_projection`` is transposed there;
* the autoencoder's attention projections are 1x1 convolutions in the single file.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import torch

from sdxl_core.nets.layout_names import (
    text_1_stored_name,
    text_2_diffusers_names,
    unet_single_name,
    vae_single_name,
)
from sdxl_core.nets.presets import ModelPreset

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Shapes of the networks' tensors, by component (folder in the diffusers layout) and name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
    """The place of one stored tensor in a network."""

    component: str
    network_name: str
    stored_name: str
    """In its file; with prefix in the single file."""
    stored_shape: tuple[int, ...]
    part: int | None = None
    """0, 1, 2 for the query, key and value rows of a fused projection; None for a whole tensor."""
    transposed: bool = False

    def view(self, network_tensor: torch.Tensor) -> torch.Tensor:
        """Returns the part of the network's tensor that is stored here, in its stored shape.

        It shares memory with ``network_tensor``, so that copying into it fills the network.
        """
        if self.part is not None:
            num_rows = self.stored_shape[0]
            network_tensor = network_tensor.narrow(0, self.part * num_rows, num_rows)
        if self.transposed:
            network_tensor = network_tensor.t()
        return network_tensor.view(self.stored_shape)


def diffusers_slots(shapes: Shapes) -> dict[str, list[Slot]]:
    """Returns the slots of the diffusers layout by component (= folder)."""
    return {
        component: [
            slot
            for name, shape in tensors.items()
            for slot in _diffusers_slots_of(component, name, shape)
        ]
        for component, tensors in shapes.items()
    }


def single_file_slots(preset: ModelPreset, shapes: Shapes) -> list[Slot]:
    """Returns the slots of the released single-file layout."""
    prefixes = single_file_prefixes(preset)
    slots = []
    for component, tensors in shapes.items():
        for name, shape in tensors.items():
            stored_name = _single_name(preset, component, name)
            is_convolution = (
                component == "vae" and ".mid.attn_1." in stored_name and len(shape) == 2
            )
            slots.append(
                Slot(
                    component=component,
                    network_name=name,
                    stored_name=prefixes[component] + stored_name,
                    stored_shape=(*shape, 1, 1) if is_convolution else shape,
                )
            )
    return slots


def single_file_prefixes(preset: ModelPreset) -> dict[str, str]:
    """Returns what the names of each component start with in the single file."""
    towers = {"text_encoder_2": "conditioner.embedders.0.model."}
    if preset.kind == "base":
        towers = {
            "text_encoder": "conditioner.embedders.0.transformer.",
            "text_encoder_2": "conditioner.embedders.1.model.",
        }
    return {**towers, "unet": "model.diffusion_model.", "vae": "first_stage_model."}


def ignored_single_file_names(preset: ModelPreset) -> set[str]:
    """Returns the names that a single file may hold beside the weights; they are never read.

    They are constants (positions, noise levels) and CLIP's training temperature. An export leaves
    them out, so that it is a function of the weights alone.
    """
    prefixes = single_file_prefixes(preset)
    names = {"denoiser.sigmas", f"{prefixes['text_encoder_2']}logit_scale"}
    if "text_encoder" in prefixes:
        names.add(f"{prefixes['text_encoder']}text_model.embeddings.position_ids")
    return names


def _single_name(preset: ModelPreset, component: str, name: str) -> str:
    if component == "unet":
        return unet_single_name(name, up_block_types=preset.unet.up_block_types)
    if component == "vae":
        return vae_single_name(name, num_levels=len(preset.vae.block_out_channels))
    return text_1_stored_name(name) if component == "text_encoder" else name


def _diffusers_slots_of(component: str, name: str, shape: tuple[int, ...]) -> Iterator[Slot]:
    if component == "text_encoder":
        stored_names: tuple[str, ...] = (text_1_stored_name(name),)
    elif component == "text_encoder_2":
        stored_names = text_2_diffusers_names(name)
    else:
        stored_names = (name,)
    is_split = len(stored_names) > 1
    transposed = (component, name) == ("text_encoder_2", "text_projection")
    if is_split:
        shape = (shape[0] // len(stored_names), *shape[1:])
    for part, stored_name in enumerate(stored_names):
        yield Slot(
            component=component,
            network_name=name,
            stored_name=stored_name,
            stored_shape=shape[::-1] if transposed else shape,
            part=part if is_split else None,
            transposed=transposed,
        )


def network_shapes(networks: Mapping[str, torch.nn.Module]) -> Shapes:
    """Returns the shapes of all tensors that ``networks`` keep in files; meta tensors will do."""
    return {
        component: {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        for component, network in networks.items()
    }
