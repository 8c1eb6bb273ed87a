"""Loads the networks that one stage needs, as the run was told to."""

import dataclasses

from cluster.messages import StageName
from cluster.work import DTYPES, GenerateWork
from sdxl_core.nets.model import SdxlModel
from sdxl_core.nets.weights import load_model


def load_models(
    work: GenerateWork,
    *,
    components: tuple[str, ...],
    stages: tuple[StageName, ...] = ("base", "refiner"),
) -> dict[StageName, SdxlModel]:
    """The models of the run with only ``components`` in memory, by stage.

    Raises:
        WeightsError: if the files are not what they were when the run was planned.
    """
    models: dict[StageName, SdxlModel] = {}
    for stage in stages:
        path = work.base if stage == "base" else work.refiner
        if path is None:
            continue
        model = load_model(
            path,
            dtype=DTYPES[work.dtype],
            vae_dtype=DTYPES[work.vae_dtype],
            device=work.device,
            variant=work.variant,
            components=components,
        )
        if work.spacing is not None:
            model = dataclasses.replace(model, timestep_spacing=work.spacing)
        models[stage] = model
    return models
