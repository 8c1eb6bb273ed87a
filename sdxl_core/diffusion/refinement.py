"""Which network does which part of a row's trajectory.

Three cases. Without a refiner the base does all of it. With the ensemble of experts (Podell et al.
2023, section 2.5, and diffusers' ``denoising_end``/``denoising_start``) the base keeps the
timesteps at or above the hand-off and the refiner goes on from its latents as they are. With image-
to-image (SDEdit) the base finishes, and the refiner starts again from its result, noised to a level
that ``strength`` sets.
"""

# Shapes: C=4 latent channels, H W latent size (pixels / 8).

from torch import Tensor

from sdxl_core.contract.errors import ConfigError, RowError
from sdxl_core.contract.prompts import Request
from sdxl_core.diffusion.conditioning import TextStates, condition
from sdxl_core.diffusion.samplers import (
    StepTable,
    handoff_step,
    make_step_table,
    sampler_timesteps,
    strength_first_step,
)
from sdxl_core.diffusion.tasks import Conditioning, DenoiseTask
from sdxl_core.nets.model import SdxlModel


def step_table(request: Request, model: SdxlModel) -> StepTable:
    """The part of the row's trajectory that ``model`` runs.

    Raises:
        RowError: if that part has no steps: the hand-off leaves one of the two networks nothing to
            do.
    """
    first, last = 0, request.steps
    if request.refiner:
        if request.strength is None:
            handoff = _handoff_step(request, model)
            first, last = (handoff, last) if model.kind == "refiner" else (0, handoff)
        elif model.kind == "refiner":
            first = strength_first_step(request.steps, request.strength)
    if first >= last:
        raise RowError(
            "invalid_handoff",
            f"steps={request.steps} with handoff={request.handoff} and strength={request.strength} "
            f"leave the {model.kind} no step; use more steps, another hand-off, or refiner=false",
        )
    try:
        return make_step_table(
            request.sampler,
            num_steps=request.steps,
            prediction_type=model.prediction_type,
            spacing=model.timestep_spacing,
            steps_offset=model.steps_offset,
            zero_terminal_snr=model.zero_terminal_snr,
            first_step=first,
            last_step=last,
        )
    except ConfigError as error:
        raise RowError("invalid_steps", str(error)) from error


def _handoff_step(request: Request, model: SdxlModel) -> int:
    timesteps = sampler_timesteps(
        request.sampler,
        num_steps=request.steps,
        spacing=model.timestep_spacing,
        steps_offset=model.steps_offset,
        zero_terminal_snr=model.zero_terminal_snr,
    )
    return handoff_step(timesteps, request.handoff)


def base_task(
    request: Request, model: SdxlModel, positive: Conditioning, negative: Conditioning | None
) -> DenoiseTask:
    """The row's piece of work for the base: from pure noise to the end, or to the hand-off."""
    return DenoiseTask(
        key=request.id,
        table=step_table(request, model),
        latent_height=request.height // 8,
        latent_width=request.width // 8,
        seed=request.seed,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        positive=positive,
        negative=negative,
    )


def refiner_task(
    request: Request,
    model: SdxlModel,
    positive: Conditioning,
    negative: Conditioning | None,
    *,
    latents_CHW: Tensor,
    num_draws_done: int,
) -> DenoiseTask:
    """The row's piece of work for the refiner, from the base's latents.

    Args:
        request: The row.
        model: The refiner.
        positive: Conditioning made for the refiner.
        negative: The same for the negative side; None when unguided.
        latents_CHW: The base's result: at the hand-off level, or clean for image-to-image.
        num_draws_done: Draws that the base took from the row's generator; the refiner's noise comes
            after them.
    """
    if request.strength is not None and request.sampler == "euler_ancestral":
        # diffusers draws at the last ancestral step too, where the noise has no weight. With a
        # generator that serves both pipelines, the refiner's noise is the draw after that.
        num_draws_done += 1
    return DenoiseTask(
        key=request.id,
        table=step_table(request, model),
        latent_height=request.height // 8,
        latent_width=request.width // 8,
        seed=request.seed,
        num_draws_done=num_draws_done,
        latents_CHW=latents_CHW,
        add_noise=request.strength is not None,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        positive=positive,
        negative=negative,
    )


def row_task(
    request: Request,
    model: SdxlModel,
    texts: tuple[TextStates, TextStates | None],
    *,
    latents_CHW: Tensor | None = None,
    num_draws_done: int = 0,
) -> DenoiseTask:
    """The row's piece of work for ``model``, whichever of the two it is.

    Args:
        request: The row.
        model: Base or refiner.
        texts: Positive and negative states for this model; a negative of None stands for zeros.
        latents_CHW: The base's result; only the refiner needs it.
        num_draws_done: Draws that the base took.

    Raises:
        RowError: if the row leaves the model nothing to do.
    """
    positive, negative = condition(request, model, *texts)
    if model.kind == "base":
        return base_task(request, model, positive, negative)
    assert latents_CHW is not None, "the refiner goes on from the base's latents"
    return refiner_task(
        request,
        model,
        positive,
        negative,
        latents_CHW=latents_CHW,
        num_draws_done=num_draws_done,
    )
