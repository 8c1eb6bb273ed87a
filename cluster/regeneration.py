"""Makes single rows of an output again, bit for bit, in this process and without a cluster.

In: the run's numerics profile, its slots and its models. Out: the encoded image of one row. Rows go
through the same functions as in the workers, one at a time: under ``exact`` numerics idle slots are
padded, so company makes no difference.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch

from cluster.messages import StageName
from cluster.work import DTYPES
from sdxl_core.contract.errors import ConfigError, WeightsError
from sdxl_core.contract.prompts import PROMPT_COLUMNS
from sdxl_core.contract.request import Request
from sdxl_core.diffusion.decoding import decode_error, decode_row, denoise_error
from sdxl_core.diffusion.engine import Engine, OutOfMemoryRow, unet_network
from sdxl_core.diffusion.refinement import row_task
from sdxl_core.diffusion.schedules import Spacing
from sdxl_core.diffusion.tasks import LaneKey
from sdxl_core.diffusion.text_stage import TextStage
from sdxl_core.nets.model import SdxlModel
from sdxl_core.nets.weights import load_model
from sdxl_core.storage.image_files import ImageFormat, encode_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumericsProfile:
    """What the column ``numerics`` says, such as ``exact:cpu:float32:vae-float32:threads-1``."""

    numerics: Literal["exact", "fast"]
    device: str
    dtype: str
    vae_dtype: str
    num_threads: int | None


def read_profile(name: str) -> NumericsProfile:
    """Takes a profile's name apart.

    Raises:
        ConfigError: if it is none of ours.
    """
    fields = name.split(":")
    if len(fields) not in (4, 5) or fields[0] not in ("exact", "fast"):
        raise ConfigError(f"numerics profile: found {name!r}, which this version does not write")
    return NumericsProfile(
        numerics="exact" if fields[0] == "exact" else "fast",
        device=fields[1],
        dtype=fields[2],
        vae_dtype=fields[3].removeprefix("vae-"),
        num_threads=int(fields[4].removeprefix("threads-")) if len(fields) == 5 else None,
    )


class Regenerator:
    """Networks of a run, loaded as its workers loaded them.

    Args:
        profile: The run's; it sets the device, the precisions and torch's threads.
        models: Place and expected digest of the base and, if the run had one, of the refiner.
        variant: Of the weights' files.
        spacing: Timestep spacing that overrides the models' own, or None.
        slots: Of each lane of each network, from the run's plan.
        image_format: Of the run.

    Raises:
        ConfigError: if this machine lacks the device, or the profile promises no equal bits.
        WeightsError: if the weights are not those of the run.
    """

    def __init__(
        self,
        profile: NumericsProfile,
        *,
        models: Mapping[StageName, tuple[str, str]],
        variant: str | None,
        spacing: Spacing | None,
        slots: Mapping[str, Mapping[LaneKey, int]],
        image_format: ImageFormat,
    ) -> None:
        _check_profile(profile)
        if profile.num_threads is not None:
            torch.set_num_threads(profile.num_threads)
        self._device, self._image_format = profile.device, image_format
        self._models: dict[StageName, SdxlModel] = {}
        for stage, (path, digest) in models.items():
            model = _load(path, digest, profile, variant)
            if spacing is not None:
                model = dataclasses.replace(model, timestep_spacing=spacing)
            self._models[stage] = model
        self._texts = TextStage(self._models)
        self._digest = models["base"][1]
        self._engines = {
            stage: Engine(
                unet_network(model.unet),
                slots_for=slots[stage],
                device=profile.device,
                dtype=DTYPES[profile.dtype],
                numerics=profile.numerics,
            )
            for stage, model in self._models.items()
        }

    def image(self, row: Mapping[str, Any]) -> bytes:
        """The encoded image of a row of the images table.

        Raises:
            RowError: if the row fails now.
        """
        request = Request(**{name: row[name] for name in PROMPT_COLUMNS})
        (texts,) = self._texts.encode([request])
        latents, num_draws = None, 0
        for stage in ("base", "refiner") if request.refiner else ("base",):
            task = row_task(
                request,
                self._models[stage],
                texts[stage],
                latents_CHW=latents,
                num_draws_done=num_draws,
            )
            engine = self._engines[stage]
            engine.submit(task)
            outcomes: list[Any] = []
            while not outcomes:
                outcomes = list(engine.tick())
            error = denoise_error(outcomes[0], kind=stage, dtype=self._models[stage].unet.dtype)
            if error is not None:
                raise error
            assert not isinstance(outcomes[0], OutOfMemoryRow)
            latents, num_draws = outcomes[0].latents_CHW, outcomes[0].num_draws_done
        assert latents is not None
        rgb_HWC, is_finite = decode_row(self._models["base"], latents, device=self._device)
        if not is_finite:
            raise decode_error(self._models["base"])
        return encode_image(
            rgb_HWC,
            image_format=self._image_format,
            parameters=image_parameters(request, self._digest),
        )


def image_parameters(request: Request, model_digest: str) -> dict[str, Any]:
    """What is written into an image file beside its pixels."""
    return dict(vars(request)) | {"model_digest": model_digest}


def _check_profile(profile: NumericsProfile) -> None:
    if profile.numerics == "fast":
        raise ConfigError(
            "the output was made with --numerics fast, under which a row's last bits depend on its "
            "neighbours; it cannot be verified by making rows again. `sdxl fsck` checks its files"
        )
    if profile.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "the output was made on a GPU and this machine has none; verify it on the same hardware"
        )


def _load(path: str, digest: str, profile: NumericsProfile, variant: str | None) -> SdxlModel:
    model = load_model(
        path,
        dtype=DTYPES[profile.dtype],
        vae_dtype=DTYPES[profile.vae_dtype],
        device=profile.device,
        variant=variant,
    )
    if model.digest != digest:
        raise WeightsError(
            f"{path}: its tensors have the digest {model.digest}, the run's were {digest}; give "
            "the weights that the run used (--model, --refiner)"
        )
    return model
