"""The two sides of a comparison of training steps: ours, and a loop as diffusers' script has it.

Both get the same batches of latents and text states, the sizes and crops as plain numbers, and the
same network; neither reads or encodes anything. What differs is all that a step does around the
network: drawing, conditions, the loss, clipping, the optimizer.

Legend of shape suffixes: B batch, C latent channels, H W latent height and width, T token
positions, D width of the text states, P width of the pooled text vector.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdxl_core.contract.seeds import sample_seed
from sdxl_core.diffusion.schedules import NUM_TRAIN_TIMESTEPS
from sdxl_core.nets.presets import ModelPreset
from sdxl_core.nets.unet import build_unet
from sdxl_core.training.conditions import allow_dropped_numbers, time_ids_of_samples
from sdxl_core.training.guard import StepGuard, guarded_step
from sdxl_core.training.loss_bands import LossBands
from sdxl_core.training.objective import DiffusionBatch, NoiseDraw
from sdxl_core.training.optimizers import AdamWSettings, make_adamw
from sdxl_core.training.seeded_objective import Objective, losses_of_samples

LEARNING_RATE = 1e-4
MAX_GRADIENT_NORM = 1.0
_NUM_BANDS = 10


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StepBatch:
    """What both sides get for one step; float32. Sizes and crops are (height, width) pixels."""

    latents_BCHW: Tensor
    states_BTD: Tensor
    pooled_BP: Tensor
    original_sizes: list[tuple[int, int]]
    crops: list[tuple[int, int]]
    seeds: list[int]

    @property
    def size_px(self) -> tuple[int, int]:
        """Of the pictures that the latents stand for."""
        height, width = self.latents_BCHW.shape[2:]
        return 8 * height, 8 * width


# One step; returns its loss, a scalar on the device.
Step = Callable[[StepBatch], Tensor]


def random_batches(preset: ModelPreset, num_batches: int, batch_size: int) -> list[StepBatch]:
    """Batches of the model's own picture size."""
    generator = torch.Generator().manual_seed(0)
    side = preset.unet.sample_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch_size, *shape, generator=generator)

    return [
        StepBatch(
            latents_BCHW=normal(4, side, side),
            states_BTD=normal(preset.text_2.num_positions, preset.unet.cross_attention_dim),
            pooled_BP=normal(preset.text_2.projection_width),
            original_sizes=[(8 * side + place, 16 * side) for place in range(batch_size)],
            crops=[(0, place) for place in range(batch_size)],
            seeds=[sample_seed(0, batch, str(place)) for place in range(batch_size)],
        )
        for batch in range(num_batches)
    ]


def fresh_unet(preset: ModelPreset) -> Any:
    """The network with float32 weights that are the same every time, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_unet(preset).train()


def our_step(unet: nn.Module, objective: Objective, dtype: torch.dtype) -> Step:
    """The step of this project in one process: what a training worker does, without a launcher.

    Args:
        unet: with float32 weights; is trained.
        objective: what for.
        dtype: of autocast; float32 is none.
    """
    allow_dropped_numbers(unet)
    optimizer = make_adamw(unet.parameters(), AdamWSettings(), learning_rate=LEARNING_RATE)
    guard, bands, tables = StepGuard(), LossBands(_NUM_BANDS), objective.tables()
    parameters = list(unet.parameters())

    def step(batch: StepBatch) -> Tensor:
        height, width = batch.size_px
        columns: dict[str, list[float | None]] = {
            "original_height": [size[0] for size in batch.original_sizes],
            "original_width": [size[1] for size in batch.original_sizes],
            "crop_top": [crop[0] for crop in batch.crops],
            "crop_left": [crop[1] for crop in batch.crops],
            "target_height": [height] * len(batch.seeds),
            "target_width": [width] * len(batch.seeds),
        }
        diffusion_batch = DiffusionBatch(
            latents_BCHW=batch.latents_BCHW,
            states_BTD=batch.states_BTD,
            pooled_BP=batch.pooled_BP,
            time_ids_BN=time_ids_of_samples(columns, kind="base"),
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = losses_of_samples(
                unet, diffusion_batch, batch.seeds, objective=objective, tables=tables
            )
        loss = losses.loss_B.mean()
        loss.backward()
        guarded_step(parameters, optimizer, guard, loss=loss, max_gradient_norm=MAX_GRADIENT_NORM)
        optimizer.zero_grad()
        bands.add(losses.error_B, losses.timestep_B)
        return loss.detach()

    return step


def _drawn_at_once(batch: StepBatch) -> NoiseDraw:
    noise_BCHW = torch.randn_like(batch.latents_BCHW)
    timestep_B = torch.randint(0, NUM_TRAIN_TIMESTEPS, (len(noise_BCHW),))
    return NoiseDraw(noise_BCHW=noise_BCHW, timestep_B=timestep_B)


def _rows_of_numbers(batch: StepBatch, device: torch.device) -> Tensor:
    """Sizes and crops of every sample, made one by one as the script does."""

    def row(size: tuple[int, int], crop: tuple[int, int]) -> Tensor:
        # The script casts them to bfloat16, which rounds sides above 256 px; as numbers they cost
        # the same in float32, and both sides then train the same thing.
        return torch.tensor([[*size, *crop, *batch.size_px]]).to(device, dtype=torch.float32)

    return torch.cat([row(*pair) for pair in zip(batch.original_sizes, batch.crops, strict=True)])


def diffusers_step(
    unet: nn.Module,
    dtype: torch.dtype,
    draw_of: Callable[[StepBatch], NoiseDraw] = _drawn_at_once,
) -> Step:
    """The step as ``examples/text_to_image/train_text_to_image_sdxl.py`` of diffusers has it.

    Written anew after it: accelerate around network, optimizer and schedule of the learning rate;
    noise and timesteps of a batch drawn at once; the scheduler's ``add_noise``; one row of size
    numbers made for each sample; torch's AdamW with the script's defaults; mean squared error of
    float32; the loss read by the host twice. Its progress bar and trackers are left out.

    Args:
        unet: with float32 weights; is trained.
        dtype: of accelerate's mixed precision; float32 is none.
        draw_of: gives noise and timesteps; another than the loop's own serves comparisons.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from diffusers.optimization import get_scheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    AcceleratorState._reset_state(reset_partial_state=True)  # there is one in a process
    is_mixed = dtype == torch.bfloat16
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if is_mixed else "no")
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    rate = get_scheduler("constant", optimizer=optimizer)
    unet, optimizer, rate = accelerator.prepare(unet, optimizer, rate)

    def step(batch: StepBatch) -> Tensor:
        with accelerator.accumulate(unet):
            latents_BCHW = batch.latents_BCHW.to(accelerator.device)
            draw = draw_of(batch)
            noisy_BCHW = scheduler.add_noise(latents_BCHW, draw.noise_BCHW, draw.timestep_B)
            predicted_BCHW = unet(
                noisy_BCHW,
                draw.timestep_B,
                batch.states_BTD.to(accelerator.device),
                added_cond_kwargs={
                    "time_ids": _rows_of_numbers(batch, accelerator.device),
                    "text_embeds": batch.pooled_BP.to(accelerator.device),
                },
            ).sample
            loss = functional.mse_loss(predicted_BCHW.float(), draw.noise_BCHW.float())
            accelerator.gather(loss.repeat(len(latents_BCHW))).mean().item()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
        loss.detach().item()
        return loss.detach()

    return step
