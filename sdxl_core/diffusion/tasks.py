"""What goes into the engine and what comes out: one row's piece of denoising on one network.

A row that uses the refiner becomes two tasks, one for each network. Neither knows of prompts or
pixels.
"""

# Shapes: C=4 latent channels, H W latent size (pixels / 8), T=77 tokens, D text width, P pooled
# width, I time ids (6 for the base, 5 for the refiner).

import dataclasses

from torch import Tensor

from sdxl_core.diffusion.samplers import StepTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioning:
    """One side (positive or negative) of what the network is told besides the noise level.

    Attributes:
        context_TD: Text states for cross-attention, any float dtype, on the CPU.
        pooled_P: Pooled text state, same dtype.
        time_ids_I: Sizes, crop and target (or aesthetic score) in SDXL's order, float32. They stay
            float32 until the network makes sinusoids of them: bfloat16 would round 1333 px to 1336.
    """

    context_TD: Tensor
    pooled_P: Tensor
    time_ids_I: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaneKey:
    """Rows that can share one network call: same latent size, and all guided or none.

    Guided rows take two places in the batch (negative and positive side), unguided rows one.
    Keeping them in separate lanes gives every call a constant batch shape, which is what makes a
    row's bits independent of its neighbours, and lets unguided rows pay for one half only.
    """

    latent_height: int
    latent_width: int
    guided: bool

    @property
    def height_px(self) -> int:
        """Image height, pixels."""
        return self.latent_height * 8

    @property
    def width_px(self) -> int:
        """Image width, pixels."""
        return self.latent_width * 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiseTask:
    """One row's trajectory through one network.

    Attributes:
        key: The caller's name for the row; unique among the tasks in one engine.
        table: Every network evaluation of the trajectory and what to do with its result.
        latent_height: Latent height (pixels / 8).
        latent_width: Latent width (pixels / 8).
        seed: Seed of the row's own CPU generator; the first draw is the starting noise.
        num_draws_done: Latent-sized draws that earlier stages of this row took from that generator.
        latents_CHW: Where to start, float32; None starts from pure noise.
        add_noise: Whether to noise ``latents_CHW`` to the table's first level (image-to-image) or
            to take them as they are (hand-off from the base).
        guidance_scale: 1 or less runs the positive side only.
        guidance_rescale: 0 to 1; see ``sdxl_core.diffusion.guidance``.
        positive: What the prompt says.
        negative: What to move away from; None only when unguided.
    """

    key: str
    table: StepTable
    latent_height: int
    latent_width: int
    seed: int
    num_draws_done: int = 0
    latents_CHW: Tensor | None = None
    add_noise: bool = False
    guidance_scale: float
    guidance_rescale: float = 0.0
    positive: Conditioning
    negative: Conditioning | None

    @property
    def lane_key(self) -> LaneKey:
        """The lane that this task has to wait in."""
        return LaneKey(
            latent_height=self.latent_height,
            latent_width=self.latent_width,
            guided=self.guidance_scale > 1.0,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoiseResult:
    """A finished task.

    Attributes:
        key: The task's key.
        latents_CHW: Float32 on the CPU. After a hand-off they are at the table's last noise level.
        num_draws_done: Draws taken from the row's generator so far, this stage included.
        num_slots: Slots of the lane that the row ran in; part of what fixes its bits.
        seconds: Wall time from entering a slot to leaving it.
        is_finite: Whether every value is a finite number.
    """

    key: str
    latents_CHW: Tensor
    num_draws_done: int
    num_slots: int
    seconds: float
    is_finite: bool
