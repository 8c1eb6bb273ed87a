"""How fast one worker of this cluster is: a few network calls of the table's commonest lane."""

import math
import time

import ray
import torch

from cluster.loading import load_models
from cluster.resources import PoolPlan
from cluster.work import DTYPES, GenerateWork
from sdxl_core.diffusion.engine import unet_network
from sdxl_core.nets.flops import unet_flops

NUM_CALLS = 3


def measure_flops_per_s(work: GenerateWork, pools: PoolPlan) -> float:
    """FLOP/s of the base UNet in one worker, everything of the call included.

    The measured worker has the cluster to itself, so on a CPU whose cores slow each other down the
    plan's seconds are a lower bound. Infinite for a table without a usable row.
    """
    if not work.slots["base"]:
        return math.inf  # not one row can be made: whatever that takes, it takes no time
    _, gpus, _ = pools.gpus
    task = ray.remote(num_cpus=pools.denoiser_cpus, num_gpus=gpus)(_measure)
    flops_per_s: float = ray.get(task.remote(work))
    return flops_per_s


@torch.inference_mode()
def _measure(work: GenerateWork) -> float:
    torch.set_num_threads(work.num_threads)
    model = load_models(work, components=("unet",), stages=("base",))["base"]
    network = unet_network(model.unet)
    key, num_slots = max(work.slots["base"].items(), key=lambda item: item[1])
    num_rows = num_slots * (2 if key.guided else 1)
    dtype, device = DTYPES[work.dtype], work.device
    preset = model.preset
    text = (preset.text_2.num_positions, preset.unet.cross_attention_dim)
    arguments = (
        torch.zeros(num_rows, 4, key.latent_height, key.latent_width, dtype=dtype, device=device),
        torch.full((num_rows,), 500.0, device=device),
        torch.zeros(num_rows, *text, dtype=dtype, device=device),
        torch.zeros(num_rows, preset.text_2.projection_width, dtype=dtype, device=device),
        torch.zeros(num_rows, preset.num_time_ids, device=device),
    )
    network(*arguments)
    started = time.perf_counter()
    for _ in range(NUM_CALLS):
        # The value is fetched so that a GPU has really finished.
        float(network(*arguments).sum())
    seconds = time.perf_counter() - started
    flops = unet_flops(preset, key.height_px, key.width_px)
    return NUM_CALLS * num_rows * flops / seconds
