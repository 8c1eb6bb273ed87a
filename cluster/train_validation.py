"""Fixed prompts, rendered now and then by the engine that generates, with the running mean of the
weights.

Legend: rgb_HWC a picture, uint8.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from cluster.zero import ZeroEngine
from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.part_requests import resolve_part
from sdxl_core.contract.request import PromptDefaults, Request
from sdxl_core.diffusion.generate import generate
from sdxl_core.nets.model import SdxlModel
from sdxl_core.storage.image_files import encode_image
from sdxl_core.storage.stores import Store
from sdxl_core.storage.table_files import find_table_files
from sdxl_core.storage.tables import plan_parts, read_part

MAX_PROMPTS = 64
VALIDATION_FOLDER = "validation"

Picture = tuple[str, npt.NDArray[np.uint8]]
"""Id of the prompt, and rgb_HWC."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """What is rendered, and every how many steps."""

    requests: tuple[Request, ...]
    every: int


def read_validation_prompts(
    url: str, *, native_size_px: int, seed: int, retries: int, timeout_s: float
) -> tuple[Request, ...]:
    """The rows of a prompt table.

    Args:
        url: parquet, CSV or JSONL, as for ``sdxl generate``.
        native_size_px: size of rows that bring none.
        seed: of rows that bring none.
        retries: tries of one storage operation.
        timeout_s: of one storage operation.

    Raises:
        ConfigError: there are too many rows, or one cannot be used.
    """
    plan = plan_parts(find_table_files(url), MAX_PROMPTS, retries=retries, timeout_s=timeout_s)
    if plan.num_rows > MAX_PROMPTS:
        raise ConfigError(
            f"validate: {url} has {plan.num_rows} prompts, expected {MAX_PROMPTS} at most: all of "
            "them are rendered again and again"
        )
    resolved = resolve_part(
        read_part(plan.part(0), retries=retries, timeout_s=timeout_s),
        first_row=0,
        defaults=PromptDefaults().for_model(native_size_px),
        run_seed=seed,
        has_refiner=False,
    )
    if resolved.failed:
        row = resolved.failed[0]
        raise ConfigError(f"validate: {url}, {row['id']}: {row['reason']}: {row['detail']}")
    return tuple(request for _, request in resolved.requests)


def render(engine: ZeroEngine, model: SdxlModel, requests: Sequence[Request]) -> list[Picture]:
    """Renders prompts on all workers, each its share; training then goes on as if nothing was.

    Args:
        engine: of this worker, at stage 1 or 2; all workers call this.
        model: with text encoders and autoencoder loaded.
        requests: the prompts.

    Returns:
        All pictures on the first worker, in the order of the requests; none on the others. A row
        that fails has no picture.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    with engine.averaged() as network:
        mine = [
            (number, image.request.id, image.rgb_HWC)
            for number, image in zip(
                range(rank, len(requests), world_size),
                generate(
                    requests[rank::world_size], model=dataclasses.replace(model, unet=network)
                ),
                strict=True,
            )
            if image.rgb_HWC is not None
        ]
    gathered: list[list[tuple[int, str, npt.NDArray[np.uint8]]] | None] = [None] * world_size
    dist.all_gather_object(gathered, mine)
    if rank:
        return []
    rendered = sorted((row for rows in gathered if rows for row in rows), key=lambda row: row[0])
    return [(name, rgb_HWC) for _, name, rgb_HWC in rendered]


def write_pictures(store: Store, step: int, pictures: Sequence[Picture]) -> None:
    """Puts the pictures as PNG below ``validation/step-NNNNNNNN``.

    Raises:
        StoreError: one cannot be written.
    """
    for number, (name, rgb_HWC) in enumerate(pictures):
        safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]
        store.write_bytes(
            f"{VALIDATION_FOLDER}/step-{step:08d}/{number:02d}-{safe}.png",
            encode_image(rgb_HWC, image_format="png", parameters=None),
        )
