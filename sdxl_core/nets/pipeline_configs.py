"""``model_index.json`` and the scheduler's configuration: what makes a folder a diffusers pipeline.

They also hold what a sampler must know of a model, so they are read as strictly as the sizes.
"""

import dataclasses
from typing import Any, cast, get_args

from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.model import PredictionType, SdxlModel, TimestepSpacing
from sdxl_core.nets.presets import ModelKind

Config = dict[str, Any]

PIPELINES: dict[ModelKind, str] = {
    "base": "StableDiffusionXLPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}

# The released scheduler_config.json; the last three lines are unused by it and kept for parity.
_SCHEDULER: Config = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "use_karras_sigmas": False,
    "clip_sample": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
# Settings that another value of would make our samplers wrong.
_FIXED = ("beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "trained_betas")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """What a model's files say about sampling; fields as in ``SdxlModel``."""

    prediction_type: PredictionType = "epsilon"
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 1
    zero_terminal_snr: bool = False
    force_zeros_for_empty_prompt: bool

    def values(self) -> Config:
        """The settings by name."""
        return dataclasses.asdict(self)


def settings_of(model: SdxlModel) -> SamplingSettings:
    """Returns the settings that ``model`` carries."""
    names = [field.name for field in dataclasses.fields(SamplingSettings)]
    return SamplingSettings(**{name: getattr(model, name) for name in names})


def model_index(kind: ModelKind, settings: SamplingSettings) -> Config:
    """Returns the content of ``model_index.json``."""
    text_1: Config = {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    extra: Config = {}
    if kind == "refiner":
        text_1 = {"text_encoder": [None, None], "tokenizer": [None, None]}
        extra = {"requires_aesthetics_score": True}
    return {
        "_class_name": PIPELINES[kind],
        "force_zeros_for_empty_prompt": settings.force_zeros_for_empty_prompt,
        **extra,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        **text_1,
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def scheduler_config(settings: SamplingSettings) -> Config:
    """Returns the content of ``scheduler/scheduler_config.json``."""
    # Released files do not have the name at all.
    rescaled: Config = {"rescale_betas_zero_snr": True} if settings.zero_terminal_snr else {}
    return {
        **_SCHEDULER,
        **rescaled,
        "prediction_type": settings.prediction_type,
        "steps_offset": settings.steps_offset,
        "timestep_spacing": settings.timestep_spacing,
    }


def settings_of_configs(index: Config, scheduler: Config, *, url: str) -> SamplingSettings:
    """Returns the settings of a diffusers folder.

    Args:
        index: content of ``model_index.json``.
        scheduler: content of ``scheduler/scheduler_config.json``; its class does not matter, ours
            are chosen per row.
        url: the folder, for the error messages.

    Raises:
        WeightsError: for another noise schedule than SDXL's, or a setting with no meaning here.
    """
    where = f"{url}/scheduler/scheduler_config.json"
    for name in _FIXED:
        found = scheduler.get(name)
        if found != _SCHEDULER[name]:
            raise WeightsError(f"{where}: found {name} = {found!r}, expected {_SCHEDULER[name]!r}")
    zero_terminal_snr = bool(scheduler.get("rescale_betas_zero_snr", False))
    if zero_terminal_snr and scheduler.get("prediction_type") != "v_prediction":
        raise WeightsError(
            f"{where}: found rescale_betas_zero_snr with prediction_type = "
            f"{scheduler.get('prediction_type')!r}, expected 'v_prediction': where nothing is left "
            "of the picture, the noise says nothing of it"
        )
    return SamplingSettings(
        prediction_type=cast(
            PredictionType,
            _one_of(get_args(PredictionType), scheduler, "prediction_type", "epsilon", where),
        ),
        timestep_spacing=cast(
            TimestepSpacing,
            _one_of(get_args(TimestepSpacing), scheduler, "timestep_spacing", "linspace", where),
        ),
        steps_offset=int(scheduler.get("steps_offset", 0)),
        zero_terminal_snr=zero_terminal_snr,
        # diffusers' own default for both pipelines
        force_zeros_for_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def _one_of(allowed: tuple[str, ...], config: Config, name: str, default: str, where: str) -> str:
    found = config.get(name, default)
    if found not in allowed:
        raise WeightsError(f"{where}: found {name} = {found!r}, expected one of {allowed}")
    return str(found)
