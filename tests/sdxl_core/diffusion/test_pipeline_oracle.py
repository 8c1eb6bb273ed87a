"""Our whole chain, text to final latents, against diffusers' pipelines around the same networks.

All rows go through our engines at once, mixed; diffusers makes them one at a time. Float32 networks
called with another batch size round differently, and guidance and steps amplify it: agreement is to
about 1e-6 of the latents' norm, and 1e-5 is asked for. The last test shows that each thing that a
row says matters a hundred times more.
"""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor

from sdxl_core.contract.request import Request
from sdxl_core.diffusion.conditioning import condition
from sdxl_core.diffusion.engine import Engine, unet_network
from sdxl_core.diffusion.refinement import base_task, refiner_task
from sdxl_core.diffusion.tasks import DenoiseResult
from sdxl_core.diffusion.text_stage import TextStage
from sdxl_core.nets.weights import export_model
from tests.micro_models import micro_model
from tests.sdxl_core.diffusion.diffusers_pipelines import base_pipeline, refiner_pipeline

MAX_RELATIVE_ERROR = 1e-5

RELEASED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
}

ALL_NEGATIVE_IDS = {
    "negative_original_height": 300,
    "negative_original_width": 500,
    "negative_crop_top": 3,
    "negative_crop_left": 70,
    "negative_target_height": 128,
    "negative_target_width": 256,
}
MICRO_CONDITIONING = {
    "original_height": 1333,
    "original_width": 777,
    "crop_top": 12,
    "crop_left": 40,
    "target_height": 1024,
    "target_width": 512,
}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide": {"height": 64, "width": 112},
    "tall": {"height": 104, "width": 72},
    "negative": {"negative_prompt": "blurry, low quality"},
    "empty negative": {"negative_prompt": ""},
    "two prompts": {"prompt_2": "oil painting", "negative_prompt": "text"},
    "two negatives": {"negative_prompt": "", "negative_prompt_2": "watermark, logo"},
    "four texts": {
        "prompt_2": "a pencil drawing",
        "negative_prompt": "text",
        "negative_prompt_2": "watermark",
    },
    "long prompt": {"prompt": "a red cube beside a blue ball, " * 20},
    "rescaled guidance": {"guidance_scale": 9.0, "guidance_rescale": 0.7},
    "no guidance": {"guidance_scale": 1.0, "negative_prompt": "has no part in it"},
    "sizes": MICRO_CONDITIONING,
    "negative sizes": MICRO_CONDITIONING | ALL_NEGATIVE_IDS,
    "ancestral": {"sampler": "euler_ancestral"},
    "heun": {"sampler": "heun"},
    "dpm": {"sampler": "dpmpp_2m", "steps": 6},
    "karras": {"sampler": "dpmpp_2m_karras", "steps": 6},
    "ddim": {"sampler": "ddim"},
}
HANDOFF_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide": {"height": 64, "width": 112, "negative_prompt": "blurry"},
    "two prompts": {"prompt_2": "oil", "negative_prompt": "text", "negative_prompt_2": "logo"},
    "no guidance": {"guidance_scale": 1.0},
    "rescaled guidance": {"guidance_rescale": 0.7, "guidance_scale": 9.0},
    "scores": {"aesthetic_score": 9.0, "negative_aesthetic_score": 1.0},
    "sizes": MICRO_CONDITIONING,
    "negative sizes": MICRO_CONDITIONING | ALL_NEGATIVE_IDS,
    "ancestral": {"sampler": "euler_ancestral"},
    "dpm": {"sampler": "dpmpp_2m"},
    "ddim": {"sampler": "ddim"},
}
IMAGE_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide": {"height": 64, "width": 112, "negative_prompt": "blurry"},
    "no guidance": {"guidance_scale": 1.0},
    "negative sizes": MICRO_CONDITIONING | ALL_NEGATIVE_IDS,
    "ancestral": {"sampler": "euler_ancestral"},
    "heun": {"sampler": "heun"},
    "dpm": {"sampler": "dpmpp_2m"},
    "ddim": {"sampler": "ddim"},
}


def requests() -> dict[str, Request]:
    """Every case as a row: base alone, handed over to the refiner, and refined image-to-image."""
    kinds: list[tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = [
        ("base", {}, CASES),
        ("handoff", {"refiner": True, "steps": 10}, HANDOFF_CASES),
        ("image", {"refiner": True, "steps": 7, "strength": 0.3}, IMAGE_CASES),
    ]
    common = {"prompt": "a red fox", "steps": 4, "height": 72, "width": 64}
    found = {}
    for kind, values, cases in kinds:
        for case, more in cases.items():
            name = f"{kind}: {case}"
            found[name] = Request(id=name, seed=len(found), **(common | values | more))
    return found


REQUESTS = requests()


@pytest.fixture(scope="module")
def ours() -> dict[str, Tensor]:
    return our_latents(list(REQUESTS.values()))


def our_latents(rows: list[Request]) -> dict[str, Tensor]:
    """Final latents by id, all rows in the same two engines."""
    models = {"base": micro_model("base"), "refiner": micro_model("refiner")}
    texts = dict(zip((row.id for row in rows), TextStage(models).encode(rows), strict=True))
    engines = {
        kind: Engine(unet_network(model.unet), slots_for=4) for kind, model in models.items()
    }
    base, refiner = models["base"], models["refiner"]
    results = engines["base"].run(
        base_task(row, base, *condition(row, base, *texts[row.id]["base"])) for row in rows
    )
    tasks = []
    for row in rows:
        if row.refiner:
            result = results[row.id]
            assert isinstance(result, DenoiseResult)
            tasks.append(
                refiner_task(
                    row,
                    refiner,
                    *condition(row, refiner, *texts[row.id]["refiner"]),
                    latents_CHW=result.latents_CHW,
                    num_draws_done=result.num_draws_done,
                )
            )
    results |= engines["refiner"].run(tasks)
    return {key: result.latents_CHW for key, result in results.items()}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for kind in ("base", "refiner"):
        export_model(micro_model(kind), folder / kind)
    return {
        "base": base_pipeline(micro_model("base"), folder / "base"),
        "refiner": refiner_pipeline(micro_model("refiner"), folder / "refiner"),
    }


@torch.inference_mode()
def diffusers_latents(pipelines, row: Request) -> Tensor:
    """The row as a user of diffusers would make it."""
    generator = torch.Generator().manual_seed(row.seed)
    handoff = row.handoff if row.refiner and row.strength is None else None
    # Where nothing is said, diffusers' refiner takes (0, 0) as the negative crop whatever the
    # positive one is. The original code and its base take the positive one; so do we.
    negative_crop = (row.negative_crop_top, row.negative_crop_left)
    if row.negative_original_height is None:
        negative_crop = (row.crop_top, row.crop_left)
    told = {
        "prompt": row.prompt,
        "prompt_2": row.prompt_2,
        "negative_prompt": row.negative_prompt,
        "negative_prompt_2": row.negative_prompt_2,
        "num_inference_steps": row.steps,
        "guidance_scale": row.guidance_scale,
        "guidance_rescale": row.guidance_rescale,
        "generator": generator,
        "original_size": (row.original_height, row.original_width),
        "crops_coords_top_left": (row.crop_top, row.crop_left),
        "target_size": (row.target_height, row.target_width),
        "negative_original_size": _pair(row.negative_original_height, row.negative_original_width),
        "negative_crops_coords_top_left": negative_crop,
        "negative_target_size": _pair(row.negative_target_height, row.negative_target_width),
        "output_type": "latent",
    }
    scheduler_class, options = SCHEDULERS[row.sampler]
    for pipeline in pipelines.values():
        pipeline.scheduler = scheduler_class(**RELEASED, **options)
    latents = pipelines["base"](
        **told, height=row.height, width=row.width, denoising_end=handoff
    ).images
    if row.refiner:
        start = {"denoising_start": handoff} if handoff else {"strength": row.strength}
        latents = pipelines["refiner"](
            **told,
            **start,
            image=latents,
            aesthetic_score=row.aesthetic_score,
            negative_aesthetic_score=row.negative_aesthetic_score,
        ).images
    return latents[0]


def _pair(height: int | None, width: int | None) -> tuple[int, int] | None:
    return None if height is None or width is None else (height, width)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", REQUESTS)
def test_final_latents_equal_those_of_the_diffusers_pipelines(name, ours, pipelines):
    expected = diffusers_latents(pipelines, REQUESTS[name])

    assert relative_error(ours[name], expected) < MAX_RELATIVE_ERROR


# One change at a time to a row that uses everything.
CHANGES: dict[str, Any] = {
    "prompt": "a red box",
    "prompt_2": "a box",
    "negative_prompt": "blurry",
    "negative_prompt_2": "dark",
    "guidance_scale": 5.5,
    "guidance_rescale": 0.5,
    "original_height": 80,
    "original_width": 80,
    "crop_top": 8,
    "crop_left": 8,
    "target_height": 80,
    "target_width": 80,
    "aesthetic_score": 5.0,
    "negative_aesthetic_score": 3.5,
    "negative_original_height": 80,
    "negative_crop_left": 90,
    "negative_target_width": 80,
}


def test_whatever_a_row_says_matters_a_hundred_times_more_than_the_tolerance():
    said = {"negative_prompt": "dull", "refiner": True, "handoff": 0.5, "steps": 4}
    before = Request(
        id="before", prompt="a red fox", height=64, width=64, **(said | ALL_NEGATIVE_IDS)
    )
    changed = [
        Request(**(vars(before) | {"id": column, column: value}))
        for column, value in CHANGES.items()
    ]

    latents = our_latents([before, *changed])

    effects = {name: relative_error(latents[name], latents["before"]) for name in CHANGES}
    assert {n: e for n, e in effects.items() if e < 100 * MAX_RELATIVE_ERROR} == {}
