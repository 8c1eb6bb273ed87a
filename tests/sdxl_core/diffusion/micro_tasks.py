"""The UNet of the micro base with wide random weights as the engine's network, and its tasks."""

import functools

import torch

from sdxl_core.diffusion.engine import unet_network
from sdxl_core.diffusion.lane import Network
from sdxl_core.diffusion.samplers import make_step_table
from sdxl_core.diffusion.tasks import Conditioning, DenoiseTask
from sdxl_core.nets.unet import build_unet
from tests.micro_models import MICRO_BASE


@functools.cache
def micro_network() -> Network:
    """A real UNet, small enough for hundreds of calls a second."""
    torch.manual_seed(0)
    unet = build_unet(MICRO_BASE).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return unet_network(unet)


def micro_conditioning(seed: int) -> Conditioning:
    """Random text states and sizes in the micro network's widths."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    return Conditioning(
        context_TD=torch.randn(8, 24 + 16, generator=generator),
        pooled_P=torch.randn(16, generator=generator),
        time_ids_I=torch.tensor([64.0, 64.0 + seed, 0.0, 0.0, 64.0, 64.0]),
    )


def micro_task(
    key: int,
    *,
    sampler: str = "euler",
    num_steps: int = 3,
    guidance_scale: float = 5.0,
    guidance_rescale: float = 0.0,
    latent_size: tuple[int, int] = (8, 8),
) -> DenoiseTask:
    """A task whose prompt, sizes and noise all come from ``key``."""
    table = make_step_table(
        sampler, num_steps=num_steps, prediction_type="epsilon", spacing="leading"
    )
    guided = guidance_scale > 1
    return DenoiseTask(
        key=str(key),
        table=table,
        latent_height=latent_size[0],
        latent_width=latent_size[1],
        seed=key,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        positive=micro_conditioning(key),
        negative=micro_conditioning(key + 500) if guided else None,
    )
