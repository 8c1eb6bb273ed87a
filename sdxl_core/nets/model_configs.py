"""The JSON files of the diffusers layout: from a preset, and back to one.

Reading is strict: a setting that would change the networks and that no SDXL model has is refused,
so that an inpainting UNet or another family is not run as if it were SDXL.
"""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.components import network_constructor
from sdxl_core.nets.presets import PRESETS, ModelPreset, TextPreset, UNetPreset, VaePreset

Config = dict[str, Any]

_TEXT_KEYS = {
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "activation": "hidden_act",
    "projection_width": "projection_dim",
    "vocab_size": "vocab_size",
    "num_positions": "max_position_embeddings",
}


def component_configs(preset: ModelPreset) -> dict[str, Config]:
    """Returns the content of every component's ``config.json``, by folder."""
    configs: dict[str, Config] = {
        "text_encoder_2": text_config_json(preset.text_2, "CLIPTextModelWithProjection"),
        "unet": {"_class_name": "UNet2DConditionModel", **preset.unet.diffusers_config()},
        "vae": {"_class_name": "AutoencoderKL", **preset.vae.diffusers_config()},
    }
    if preset.text_1 is not None:
        configs["text_encoder"] = text_config_json(preset.text_1, "CLIPTextModel")
    return configs


def text_config_json(sizes: TextPreset, class_name: str) -> Config:
    """Returns ``config.json`` of a text encoder, the values that transformers must be told."""
    from sdxl_core.nets.text_encoders import clip_text_config  # late: only an export needs it

    config = clip_text_config(sizes)
    names = [*_TEXT_KEYS.values(), "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id"]
    values = {name: getattr(config, name) for name in names}
    return {"architectures": [class_name], "model_type": "clip_text_model", **values}


def preset_of_configs(
    configs: Mapping[str, Config], *, url: str, wanted: Collection[str] | None = None
) -> ModelPreset:
    """Returns the sizes that the component configurations of a folder describe.

    Args:
        configs: content of each ``config.json`` by folder; without ``text_encoder`` for a refiner.
        url: the folder, for the error messages.
        wanted: components that will be built. Settings beside the sizes are checked for these
            alone, because that takes the library of the network. None means all.

    Raises:
        WeightsError: if they are not those of an SDXL base or refiner.
    """
    unet = _unet_preset(configs["unet"], url=f"{url}/unet/config.json")
    vae = _vae_preset(configs["vae"], url=f"{url}/vae/config.json")
    expected_configs = {"unet": unet.diffusers_config(), "vae": vae.diffusers_config()}
    for component, expected_config in expected_configs.items():
        if wanted is None or component in wanted:
            _check_settings(
                configs[component],
                expected_config,
                network_constructor(component),
                url=f"{url}/{component}/config.json",
            )
    text_2 = _text_preset(configs["text_encoder_2"], url=f"{url}/text_encoder_2/config.json")
    has_text_1 = "text_encoder" in configs
    num_time_ids = 6 if has_text_1 else 5
    expected = text_2.projection_width + num_time_ids * unet.addition_time_embed_dim
    if unet.projection_class_embeddings_input_dim != expected:
        raise WeightsError(
            f"{url}/unet/config.json: found projection_class_embeddings_input_dim ="
            f" {unet.projection_class_embeddings_input_dim}, expected {expected}:"
            f" {text_2.projection_width} of the pooled text and {num_time_ids} numbers as"
            f" {unet.addition_time_embed_dim} channels each, for a folder"
            f" {'with' if has_text_1 else 'without'} text_encoder/"
        )
    text_1 = None
    if has_text_1:
        text_1 = _text_preset(configs["text_encoder"], url=f"{url}/text_encoder/config.json")
    return named_preset(
        ModelPreset(
            name="custom",
            kind="base" if has_text_1 else "refiner",
            unet=unet,
            vae=vae,
            text_1=text_1,
            text_2=text_2,
        )
    )


def named_preset(preset: ModelPreset) -> ModelPreset:
    """Returns ``preset`` with the name of the known one that it equals, else called ``custom``.

    The precision that the autoencoder declares does not count.
    """
    for known in PRESETS.values():
        vae = dataclasses.replace(preset.vae, force_upcast=known.vae.force_upcast)
        if dataclasses.replace(preset, name=known.name, vae=vae) == known:
            return dataclasses.replace(preset, name=known.name)
    return dataclasses.replace(preset, name="custom")


def preset_to_json(preset: ModelPreset) -> Config:
    """Returns ``preset`` as it is kept in a single file's metadata."""
    return dataclasses.asdict(preset)


def preset_from_json(values: Config, *, url: str) -> ModelPreset:
    """Returns the preset that ``preset_to_json`` described.

    Raises:
        WeightsError: if a value is missing or surplus.
    """
    try:
        text_1 = values["text_1"]
        preset = ModelPreset(
            name=values["name"],
            kind=values["kind"],
            unet=UNetPreset(**_with_tuples(values["unet"])),
            vae=VaePreset(**_with_tuples(values["vae"])),
            text_1=None if text_1 is None else TextPreset(**text_1),
            text_2=TextPreset(**values["text_2"]),
        )
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{url}: its metadata does not describe a model: {error!r}") from error
    return named_preset(preset)


def _unet_preset(config: Config, *, url: str) -> UNetPreset:
    num_levels = len(_required(config, "block_out_channels", url=url))
    values = {
        field.name: _required(config, field.name, url=url)
        for field in dataclasses.fields(UNetPreset)
        if field.name != "norm_num_groups"
    }
    if isinstance(values["attention_head_dim"], int):
        values["attention_head_dim"] = (values["attention_head_dim"],) * num_levels
    return UNetPreset(**_with_tuples(values), norm_num_groups=config.get("norm_num_groups", 32))


def _vae_preset(config: Config, *, url: str) -> VaePreset:
    values = {
        name: _required(config, name, url=url)
        for name in ("block_out_channels", "sample_size", "scaling_factor")
    }
    preset = VaePreset(
        **_with_tuples(values),
        # What a file leaves out is the library's default.
        layers_per_block=config.get("layers_per_block", 1),
        norm_num_groups=config.get("norm_num_groups", 32),
        force_upcast=config.get("force_upcast", True),
    )
    if len(preset.block_out_channels) != 4:
        raise WeightsError(
            f"{url}: found {len(preset.block_out_channels)} levels, expected 4 (8 times smaller)"
        )
    return preset


def _text_preset(config: Config, *, url: str) -> TextPreset:
    preset = TextPreset(
        **{field: _required(config, key, url=url) for field, key in _TEXT_KEYS.items()}
    )
    if preset.activation not in ("quick_gelu", "gelu"):
        raise WeightsError(f"{url}: found hidden_act {preset.activation!r}, expected a CLIP tower")
    if (preset.vocab_size, preset.num_positions) != (49408, 77):
        raise WeightsError(
            f"{url}: found {preset.vocab_size} tokens and {preset.num_positions} positions,"
            " expected CLIP's 49408 and 77"
        )
    return preset


def _check_settings(
    config: Config, expected: Config, constructor: Callable[..., Any], *, url: str
) -> None:
    """Every setting that the library knows is SDXL's, or the library's default."""
    for name, parameter in inspect.signature(constructor).parameters.items():
        found = config.get(name)
        if found is None:  # the released files write null for many defaults
            continue
        wanted = expected.get(name, parameter.default)
        if _comparable(found) != _comparable(wanted):
            raise WeightsError(
                f"{url}: found {name} = {found!r}, expected {wanted!r}; this is not an SDXL network"
            )


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _with_tuples(values: Config) -> Config:
    return {name: _comparable(value) for name, value in values.items()}


def _required(config: Config, name: str, *, url: str) -> Any:
    if config.get(name) is None:
        raise WeightsError(f"{url}: {name} is missing; this is not an SDXL component")
    return config[name]
