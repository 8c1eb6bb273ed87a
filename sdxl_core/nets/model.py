"""A loaded model: its networks, and what its files say about how to use them."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.components import network_builders
from sdxl_core.nets.presets import ModelKind, ModelPreset

if TYPE_CHECKING:  # their libraries are imported by those who run them
    from sdxl_core.nets.text_encoders import CLIPTextModel, TextTransformer
    from sdxl_core.nets.unet import UNet2DConditionModel
    from sdxl_core.nets.vae import AutoencoderKL

PredictionType = Literal["epsilon", "v_prediction"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]


class NotLoaded(nn.Module):
    """Stands where a network was not asked for. It has no weights and refuses to run."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self.component = component

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        """Refuses.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.component} was not loaded; name it in load_model's components")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SdxlModel:
    """Networks of a base or a refiner, ready to run, in evaluation mode.

    Of a model that was loaded in part, the other networks are ``NotLoaded``.
    """

    preset: ModelPreset
    unet: "UNet2DConditionModel"
    vae: "AutoencoderKL"
    text_1: "CLIPTextModel | None"
    """None in a refiner."""
    text_2: "TextTransformer"
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 1
    zero_terminal_snr: bool = False
    """The noise schedule is the released one, rescaled so that nothing is left at its end."""
    force_zeros_for_empty_prompt: bool
    """True in the base: a row without a negative prompt is guided away from zero embeddings."""
    digest: str = ""
    """SHA-256 of the tensors as they are stored; "" when the weights come from no file."""
    stored_dtypes: dict[str, torch.dtype] = dataclasses.field(default_factory=dict)
    """Precision of each tensor in its file, by ``component/name in the network``. An export writes
    these unless told otherwise; a tensor that is absent here is written as it is in memory."""

    @property
    def kind(self) -> ModelKind:
        """``base`` or ``refiner``."""
        return self.preset.kind

    @property
    def vae_fp16_safe(self) -> bool:
        """Do the files declare that the autoencoder can run in float16 (``force_upcast`` false)."""
        return not self.preset.vae.force_upcast

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by their folder names in the diffusers layout, sorted."""
        towers = {} if self.text_1 is None else {"text_encoder": self.text_1}
        return {**towers, "text_encoder_2": self.text_2, "unet": self.unet, "vae": self.vae}


def trained_as(
    model: SdxlModel, *, prediction_type: PredictionType, zero_terminal_snr: bool
) -> SdxlModel:
    """Returns the model as it has to be sampled after training for this objective.

    Args:
        model: as it was before.
        prediction_type: what the network was trained to say.
        zero_terminal_snr: with the rescaled schedule: sampling then begins at its end, where
            spacing ``trailing`` begins (arXiv:2305.08891, section 3.3).
    """
    spacing: TimestepSpacing = "trailing" if zero_terminal_snr else model.timestep_spacing
    return dataclasses.replace(
        model,
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        timestep_spacing=spacing,
    )


def model_of(preset: ModelPreset, networks: dict[str, nn.Module]) -> SdxlModel:
    """Returns ``networks`` as a model with the settings of the released models.

    Args:
        preset: the sizes that the networks have.
        networks: by their folder names in the diffusers layout, as ``build_networks`` gives them;
            what is missing becomes ``NotLoaded``.
    """
    names = ["text_encoder_2", "unet", "vae"]
    if preset.text_1 is not None:
        names.append("text_encoder")
    networks = {name: networks.get(name, NotLoaded(name)) for name in names}
    return SdxlModel(
        preset=preset,
        unet=networks["unet"],
        vae=networks["vae"],
        text_1=networks.get("text_encoder"),
        text_2=networks["text_encoder_2"],
        force_zeros_for_empty_prompt=preset.kind == "base",
    )


def random_model(preset: ModelPreset, *, seed: int = 0) -> SdxlModel:
    """Returns a model with random weights, the same for the same seed.

    The global random state is left as it was.

    Args:
        preset: any sizes; full size takes 14 GB in float32.
        seed: of torch's generator.
    """
    builders = network_builders(preset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_of(preset, {name: build(preset) for name, build in builders.items()})


def check_vae_dtype(model: SdxlModel, dtype: torch.dtype) -> None:
    """Refuses an autoencoder precision that gives black images; see ``check_vae_preset_dtype``."""
    check_vae_preset_dtype(model.preset, dtype)


def check_vae_preset_dtype(preset: ModelPreset, dtype: torch.dtype) -> None:
    """Refuses an autoencoder precision that gives black images.

    The released autoencoder overflows float16 inside; float32 and bfloat16 always work, and float16
    does for an autoencoder whose files declare ``"force_upcast": false``.

    Raises:
        ConfigError: if ``dtype`` is float16 and the autoencoder does not declare that it is safe,
            or if it is none of the three.
    """
    if dtype in (torch.float32, torch.bfloat16):
        return
    if dtype != torch.float16:
        raise ConfigError(f"autoencoder precision: found {dtype}, expected float32 or bfloat16")
    if preset.vae.force_upcast:
        raise ConfigError(
            f"autoencoder of {preset.name!r}: found float16, in which the released one overflows to"
            " black images. Use float32 or bfloat16, or a float16-safe autoencoder, whose"
            ' vae/config.json says "force_upcast": false'
        )


def default_vae_dtype(preset: ModelPreset, dtype: torch.dtype) -> torch.dtype:
    """Returns ``dtype`` where the autoencoder may run in it, else float32."""
    try:
        check_vae_preset_dtype(preset, dtype)
    except ConfigError:
        return torch.float32
    return dtype
