"""Opens the files of a model, in either layout, and reads everything but the tensors.

What comes out is a ``WeightsSource``: the sizes, the settings, and for every file its header and
the slots that it must fill, exactly.
"""

import dataclasses
import importlib.resources
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.layouts import ignored_single_file_names, single_file_prefixes
from sdxl_core.nets.model_configs import preset_from_json, preset_of_configs
from sdxl_core.nets.pipeline_configs import SamplingSettings, settings_of_configs
from sdxl_core.nets.presets import SDXL_BASE, SDXL_REFINER, ModelPreset
from sdxl_core.nets.safetensors_file import Header, read_header
from sdxl_core.storage.stores import Store, open_file, open_store

EMBEDDED_MODELS = ("tiny", "tiny-refiner")
"""Models inside this package, under ``sdxl_core/assets``."""

METADATA_KEY = "sdxl_model"
"""Key of a single file's metadata under which an export describes the model, as JSON."""

FILE_STEMS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""Name of the weights file in each folder of the diffusers layout, without its suffix."""

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WeightsFile:
    """One safetensors file."""

    store: Store
    path: str
    header: Header
    component: str | None
    """Folder in the diffusers layout; None for a single file, which holds all."""

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        return self.store.join(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsSource:
    """A model's files, before their tensors are read."""

    url: str
    preset: ModelPreset
    settings: SamplingSettings
    files: Sequence[WeightsFile]
    is_single_file: bool


def open_source(
    path_or_name: str | Path, *, variant: str | None, components: Collection[str] | None = None
) -> WeightsSource:
    """Finds out what is at ``path_or_name``; see ``weights.load_model``."""
    text = str(path_or_name)
    if text in EMBEDDED_MODELS:
        text = str(importlib.resources.files("sdxl_core").joinpath("assets", text))
    if text.endswith(PICKLE_SUFFIXES):
        raise WeightsError(pickle_advice(text))
    if text.endswith(".safetensors"):
        if variant is not None:
            raise WeightsError(f"{text}: a single file has no variant; leave out {variant!r}")
        return _open_single_file(text)
    return _open_folder(open_store(text), variant=variant, wanted=components)


def _open_single_file(url: str) -> WeightsSource:
    store, path = open_file(url)
    file = _open_weights(store, path, component=None)
    description = file.header.metadata.get(METADATA_KEY)
    if description is None:
        preset = _released_preset(file)
        settings = SamplingSettings(force_zeros_for_empty_prompt=preset.kind == "base")
        if file.header.metadata.get("modelspec.prediction_type") == "v":
            settings = dataclasses.replace(settings, prediction_type="v_prediction")
    else:
        preset, settings = _described(_json(description, url=url), url=url)
    return WeightsSource(
        url=url, preset=preset, settings=settings, files=[file], is_single_file=True
    )


def _described(values: Mapping[str, Any], *, url: str) -> tuple[ModelPreset, SamplingSettings]:
    try:
        settings = SamplingSettings(**values["sampling"])
        return preset_from_json(values["preset"], url=url), settings
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{url}: metadata {METADATA_KEY} cannot be used: {error!r}") from error


def _released_preset(file: WeightsFile) -> ModelPreset:
    """The base or the refiner, by the place of the open_clip tower."""
    names = {tensor.name for tensor in file.header.tensors}
    for preset in (SDXL_BASE, SDXL_REFINER):
        prefix = single_file_prefixes(preset)["text_encoder_2"]
        if f"{prefix}transformer.resblocks.0.attn.in_proj_weight" in names:
            return preset
    found = sorted({name.split(".")[0] for name in names})
    raise WeightsError(
        f"{file.url}: found tensors of {', '.join(found[:10]) or 'nothing'}, expected a whole SDXL"
        " base or refiner: model.diffusion_model, conditioner.embedders and first_stage_model"
    )


def _open_folder(
    store: Store, *, variant: str | None, wanted: Collection[str] | None
) -> WeightsSource:
    if not store.exists("model_index.json"):
        raise WeightsError(
            f"{store.url}: found no model_index.json, expected a diffusers folder, a .safetensors"
            f" file, or one of the embedded models {', '.join(EMBEDDED_MODELS)}"
        )
    index = _read_json(store, "model_index.json")
    name = str(index.get("_class_name"))
    if not name.startswith("StableDiffusionXL"):
        raise WeightsError(f"{store.url}/model_index.json: found {name}, expected an SDXL pipeline")
    has_text_1 = any(index.get("text_encoder") or ())
    components = [c for c in FILE_STEMS if c != "text_encoder" or has_text_1]
    configs = {c: _read_json(store, f"{c}/config.json") for c in components}
    scheduler = _read_json(store, "scheduler/scheduler_config.json")
    preset = preset_of_configs(configs, url=store.url, wanted=wanted)
    settings = settings_of_configs(index, scheduler, url=store.url)
    files = [
        _open_weights(store, path, component=component)
        for component in components
        if wanted is None or component in wanted
        for path in _component_paths(store, component, variant)
    ]
    return WeightsSource(
        url=store.url, preset=preset, settings=settings, files=files, is_single_file=False
    )


def _component_paths(store: Store, component: str, variant: str | None) -> list[str]:
    """The weights file of a folder, or its shards."""
    stem = FILE_STEMS[component]
    infix = "" if variant is None else f".{variant}"
    whole = f"{component}/{stem}{infix}.safetensors"
    if store.exists(whole):
        return [whole]
    shards = f"{component}/{stem}.safetensors.index{infix}.json"
    if store.exists(shards):
        weight_map = _read_json(store, shards).get("weight_map", {})
        return [f"{component}/{name}" for name in sorted(set(weight_map.values()))]
    found = [file.path for file in store.list(component)]
    pickles = [path for path in found if path.endswith(PICKLE_SUFFIXES)]
    advice = f". {pickle_advice(store.join(pickles[0]))}" if pickles else ""
    raise WeightsError(
        f"{store.join(whole)} is missing; variant = {variant!r}, and the folder holds"
        f" {', '.join(found) or 'nothing'}{advice}"
    )


def _open_weights(store: Store, path: str, *, component: str | None) -> WeightsFile:
    url = store.join(path)
    num_file_bytes = store.size(path)
    with store.open_read(path) as file:
        header = read_header(file, url=url, num_file_bytes=num_file_bytes)
    return WeightsFile(store=store, path=path, header=header, component=component)


def ignored_names(file: WeightsFile, preset: ModelPreset) -> set[str]:
    """Returns the names of tensors in ``file`` that are not weights and may be there or not."""
    if file.component is None:
        return ignored_single_file_names(preset)
    if file.component in ("text_encoder", "text_encoder_2"):
        return {"text_model.embeddings.position_ids", "embeddings.position_ids"}
    return set()


def _read_json(store: Store, path: str) -> dict[str, Any]:
    return _json(store.read_bytes(path), url=store.join(path))


def _json(text: bytes | str, *, url: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{url}: expected JSON: {error}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{url}: found JSON of type {type(values).__name__}, expected an object")
    return values


def pickle_advice(url: str) -> str:
    """Why a pickle is not read, and how to make safetensors of it."""
    return (
        f"{url}: a pickle can run any code when it is read, so only safetensors are accepted."
        " Convert it in a place that you trust: state = torch.load(FILE, weights_only=True);"
        " safetensors.torch.save_file(state.get('state_dict', state), 'FILE.safetensors')"
    )
