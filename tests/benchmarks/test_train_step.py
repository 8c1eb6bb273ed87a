"""The benchmark of the training step compares steps that train the same thing."""

import torch

from benchmarks.train_sides import diffusers_step, fresh_unet, our_step, random_batches
from benchmarks.train_step import largest_difference
from sdxl_core.nets.presets import TINY
from sdxl_core.training.conditions import ConditionDropout
from sdxl_core.training.sample_draws import draw_for_samples
from sdxl_core.training.seeded_objective import Objective
from tests.micro_models import MICRO_BASE


def test_both_sides_have_the_same_losses_step_after_step() -> None:
    batches = random_batches(TINY, 2, 2)
    assert largest_difference(batches, torch.float32) < 1e-5
    assert largest_difference(batches, torch.bfloat16) < 1e-2


def test_both_sides_arrive_at_the_same_weights() -> None:
    networks = [fresh_unet(MICRO_BASE) for _ in range(2)]
    steps = [
        our_step(networks[0], Objective(dropout=ConditionDropout(text=0.0)), torch.float32),
        diffusers_step(
            networks[1],
            torch.float32,
            draw_of=lambda batch: draw_for_samples(batch.seeds, (4, 16, 16), offset_noise=0.0),
        ),
    ]
    before = fresh_unet(MICRO_BASE).state_dict()
    for batch in random_batches(MICRO_BASE, 3, 2):
        for step in steps:
            step(batch)
    ours, theirs = (network.state_dict() for network in networks)
    moved = max(float((ours[name] - before[name]).abs().max()) for name in ours)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert moved > 1e-4
    assert apart < 0.2 * moved  # Adam's first steps turn rounding of tiny gradients into signs
