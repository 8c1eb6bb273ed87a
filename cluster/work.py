"""What every worker has to know about a run. Small and picklable: paths and numbers, no weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch

from sdxl_core.contract.request import PromptDefaults
from sdxl_core.diffusion.engine import Numerics
from sdxl_core.diffusion.schedules import Spacing
from sdxl_core.diffusion.tasks import LaneKey
from sdxl_core.storage.tables import PartPlan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateWork:
    """One run of generate, from the point of view of its workers.

    Attributes:
        out: Where the images dataset is.
        parts: Which rows of which file make up each part.
        duplicates: For some parts, (row, first row with the same id) pairs.
        defaults: What rows fall back to.
        run_seed: Seeds rows that bring none.
        base: Base model: name, folder or file.
        refiner: Refiner, or None.
        variant: Variant of the weights' files, or None.
        model_digest: What the base's tensors must hash to.
        refiner_digest: The same for the refiner.
        spacing: Timestep spacing, overriding the models' own, or None.
        dtype: Of the UNets and the text encoders.
        vae_dtype: Of the autoencoder.
        numerics: ``exact`` or ``fast``.
        numerics_name: All that fixes a row's bits besides the row: goes onto every row.
        slots: Slot number of every lane of each network.
        device: ``cpu`` or ``cuda``.
        num_threads: Torch threads of each worker on the CPU.
        output_format: Where images go.
        image_format: How they are encoded.
        retry_failed: Whether finished parts are opened again for their failed rows.
        max_attempts: Times that a part may be begun at one stage before its rows fail.
        retries: Tries of one storage operation.
        timeout_s: Of one storage operation.
    """

    out: str
    parts: PartPlan
    duplicates: Mapping[int, Any]
    defaults: PromptDefaults
    run_seed: int
    base: str
    refiner: str | None
    variant: str | None
    model_digest: str
    refiner_digest: str | None
    spacing: Spacing | None
    dtype: str
    vae_dtype: str
    numerics: Numerics
    numerics_name: str
    slots: Mapping[str, Mapping[LaneKey, int]]
    device: str
    num_threads: int
    output_format: Literal["files", "parquet", "webdataset", "dry"]
    image_format: Literal["png", "webp", "jpeg"]
    retry_failed: bool = False
    max_attempts: int = 3
    retries: int = 6
    timeout_s: float = 30.0
