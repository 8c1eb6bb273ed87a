"""The two sides of a comparison: our engine and diffusers' pipelines, around the same networks.

Both get text states that were encoded before and give latents, so that what is compared is
batching and the loop around the UNet. Text encoding and decoding are the same networks on both
sides and would only bring every ratio nearer to 1.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import progress
from sdxl_core.contract.errors import WeightsError
from sdxl_core.contract.request import Request
from sdxl_core.diffusion.engine import Engine, OutOfMemoryRow, unet_network
from sdxl_core.diffusion.refinement import row_task
from sdxl_core.diffusion.service import fullest
from sdxl_core.diffusion.tasks import DenoiseResult, LaneKey
from sdxl_core.diffusion.text_stage import RowTexts, TextStage
from sdxl_core.nets.model import SdxlModel, random_model
from sdxl_core.nets.presets import TINY, TINY_REFINER, ModelKind
from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops
from sdxl_core.nets.weights import load_model

Models = dict[ModelKind, SdxlModel]


def embedded_models(dtype: torch.dtype) -> tuple[Models, str]:
    """Base and refiner of the embedded pair, and where their weights are from."""
    try:
        return {
            "base": load_model("tiny", dtype=dtype),
            "refiner": load_model("tiny-refiner", dtype=dtype),
        }, "embedded"
    except WeightsError:
        progress("no embedded weights: random ones of the same sizes")
    models: Models = {"base": random_model(TINY), "refiner": random_model(TINY_REFINER)}
    for model in models.values():
        for network in model.networks.values():
            torch.nn.Module.to(network, dtype=dtype)
    return models, "random"


def encode_texts(models: Models, rows: Sequence[Request]) -> list[RowTexts]:
    """Text states of every row."""
    return TextStage(models).encode(rows)


def run_engine(
    models: Models,
    rows: Sequence[Request],
    texts: Sequence[RowTexts],
    *,
    slots: int | Mapping[str, Mapping[LaneKey, int]],
) -> tuple[dict[str, DenoiseResult], dict[str, float]]:
    """All rows at once through a base engine and a refiner engine, in turns on the same threads.

    Args:
        models: Base, and refiner if rows use it.
        rows: What to make.
        texts: Their text states.
        slots: Of every lane: one number, or a number for each lane of each engine.

    Returns:
        Final latents by id, and the share of places that held a row, by engine.
    """
    engines = {
        kind: Engine(
            unet_network(model.unet),
            slots_for=slots if isinstance(slots, int) else slots[kind],
            dtype=model.unet.dtype,
            device=model.unet.device,
        )
        for kind, model in models.items()
    }
    waiting = {row.id: (row, text) for row, text in zip(rows, texts, strict=True)}
    for row, text in waiting.values():
        engines["base"].submit(row_task(row, models["base"], text["base"]))
    done: dict[str, DenoiseResult] = {}
    while (name := fullest(engines)) is not None:
        for outcome in engines[name].tick():
            assert not isinstance(outcome, OutOfMemoryRow), outcome.detail
            row, text = waiting[outcome.key]
            if name == "base" and row.refiner:
                engines["refiner"].submit(
                    row_task(
                        row,
                        models["refiner"],
                        text["refiner"],
                        latents_CHW=outcome.latents_CHW,
                        num_draws_done=outcome.num_draws_done,
                    )
                )
            else:
                done[outcome.key] = outcome
    utilisation = {
        name: round(engine.stats.utilisation, 4)
        for name, engine in engines.items()
        if engine.stats.num_ticks
    }
    return done, utilisation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipelines:
    """diffusers' text-to-image and image-to-image pipelines around the same UNets."""

    base: Any
    refiner: Any


def diffusers_pipelines(models: Models) -> Pipelines:
    """Pipelines without text encoders: they are given text states, as the engine is."""
    declare_missing_torchvision_ops()
    from diffusers import (
        EulerDiscreteScheduler,
        StableDiffusionXLImg2ImgPipeline,
        StableDiffusionXLPipeline,
    )

    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))

    def scheduler(model: SdxlModel) -> EulerDiscreteScheduler:
        return EulerDiscreteScheduler(
            prediction_type=model.prediction_type,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing=model.timestep_spacing,
            steps_offset=model.steps_offset,
        )

    base, refiner = models["base"], models["refiner"]
    pipelines = Pipelines(
        base=StableDiffusionXLPipeline(
            vae=base.vae,
            unet=base.unet,
            scheduler=scheduler(base),
            add_watermarker=False,
            **nothing,
        ),
        refiner=StableDiffusionXLImg2ImgPipeline(
            vae=base.vae,
            unet=refiner.unet,
            scheduler=scheduler(refiner),
            requires_aesthetics_score=True,
            add_watermarker=False,
            **nothing,
        ),
    )
    for pipeline in (pipelines.base, pipelines.refiner):
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


def run_diffusers(
    pipelines: Pipelines,
    rows: Sequence[Request],
    texts: Sequence[RowTexts],
    *,
    batch_size: int,
    noise: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Rows of equal size, steps, guidance and refiner share a call, at most ``batch_size`` of them.

    A pipeline takes one size, one step count and one scale a call: this is as much batching as it
    can do.

    Args:
        pipelines: Of ``diffusers_pipelines``.
        rows: What to make.
        texts: Their text states.
        batch_size: Rows of a call.
        noise: Starting noise by id, (C, H, W) float32; None draws it from each row's seed.

    Returns:
        Final latents by id.
    """
    groups: dict[tuple[Any, ...], list[tuple[Request, RowTexts]]] = {}
    for row, text in zip(rows, texts, strict=True):
        kind = (row.height, row.width, row.steps, row.guidance_scale, row.refiner)
        groups.setdefault(kind, []).append((row, text))
    done: dict[str, Tensor] = {}
    for group in groups.values():
        for first in range(0, len(group), batch_size):
            done.update(_run_batch(pipelines, group[first : first + batch_size], noise))
    return done


def _run_batch(
    pipelines: Pipelines,
    batch: Sequence[tuple[Request, RowTexts]],
    noise: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    rows = [row for row, _ in batch]
    first = rows[0]
    generators = [torch.Generator("cpu").manual_seed(row.seed) for row in rows]
    common = {
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance_scale,
        "generator": generators,
        "output_type": "latent",
    }
    latents = None
    if noise is not None:
        latents = torch.stack([noise[row.id] for row in rows]).to(pipelines.base.unet.dtype)
    latents_BCHW = pipelines.base(
        height=first.height,
        width=first.width,
        latents=latents,
        denoising_end=first.handoff if first.refiner else None,
        **_embeddings([text["base"] for _, text in batch]),
        **common,
    ).images
    if first.refiner:
        latents_BCHW = pipelines.refiner(
            image=latents_BCHW,
            denoising_start=first.handoff,
            original_size=(first.height, first.width),
            target_size=(first.height, first.width),
            **_embeddings([text["refiner"] for _, text in batch]),
            **common,
        ).images
    return {row.id: latents_CHW for row, latents_CHW in zip(rows, latents_BCHW, strict=True)}


def _embeddings(texts: Iterable[Any]) -> dict[str, Tensor]:
    """The pipelines' arguments; a negative of None stands for zeros, as in the engine."""
    pairs = list(texts)
    context = torch.stack([positive.context_TD for positive, _ in pairs])
    pooled = torch.stack([positive.pooled_P for positive, _ in pairs])
    given = [negative for _, negative in pairs if negative is not None]
    return {
        "prompt_embeds": context,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": (
            torch.stack([negative.context_TD for negative in given])
            if given
            else torch.zeros_like(context)
        ),
        "negative_pooled_prompt_embeds": (
            torch.stack([negative.pooled_P for negative in given])
            if given
            else torch.zeros_like(pooled)
        ),
    }
