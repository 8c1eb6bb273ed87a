"""Models for the benchmarks of whole jobs: the embedded pair, or small random ones on disk."""

import dataclasses
from pathlib import Path

from benchmarks.harness import progress
from sdxl_core.contract.errors import WeightsError
from sdxl_core.nets.model import random_model
from sdxl_core.nets.presets import TINY, TINY_REFINER, ModelPreset
from sdxl_core.nets.weights import export_model, model_identity

# The smallest base there is: its arithmetic is next to nothing beside the job around it.
MICRO = dataclasses.replace(
    TINY,
    name="micro",
    unet=dataclasses.replace(
        TINY.unet,
        block_out_channels=(16, 16, 16),
        attention_head_dim=(1, 1, 1),
        transformer_layers_per_block=(1, 1, 1),
        cross_attention_dim=16,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 + 6 * 8,
        sample_size=8,
        norm_num_groups=4,
    ),
    vae=dataclasses.replace(TINY.vae, block_out_channels=(8, 8, 8, 8)),
    text_1=dataclasses.replace(
        TINY.text_2,
        width=8,
        num_layers=2,
        num_heads=1,
        mlp_width=16,
        projection_width=8,
        activation="quick_gelu",
    ),
    text_2=dataclasses.replace(
        TINY.text_2, width=8, num_layers=2, num_heads=1, mlp_width=16, projection_width=8
    ),
)


def model_arguments(folder: str | Path) -> list[str]:
    """Flags of ``sdxl generate`` for the embedded pair; random weights if there is none."""
    try:
        model_identity("tiny")
        model_identity("tiny-refiner")
    except WeightsError:
        progress("no embedded weights: random ones of the same sizes")
        base = export_random(TINY, Path(folder) / "base")
        refiner = export_random(TINY_REFINER, Path(folder) / "refiner")
        return ["--model", str(base), "--refiner", str(refiner)]
    return ["--model", "tiny", "--refiner", "tiny-refiner"]


def export_random(preset: ModelPreset, folder: Path) -> Path:
    """A model with random weights as a diffusers folder."""
    export_model(random_model(preset), folder)
    return folder
