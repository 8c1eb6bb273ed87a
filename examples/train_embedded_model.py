"""Trains the embedded models ``tiny`` and ``tiny-refiner`` from nothing, on one CPU process.

    python examples/train_embedded_model.py --work /tmp/tiny --out sdxl_core/assets

Stages, each resumable (run the same command again): ``vae`` (autoencoder, encoder frozen at its
end), ``text`` (both encoders), ``latents`` (scenes encoded once), ``decoder`` (the
decoder goes on alone), ``base``, ``refiner``, ``export`` (float16, diffusers folders). With
``--stages`` a part of them; each reads what the earlier ones left in ``--work``.
"""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sdxl_core.nets.build import build_networks, build_text_1, build_text_2, build_unet, build_vae
from sdxl_core.nets.model import model_of
from sdxl_core.nets.presets import TINY, TINY_REFINER, ModelPreset
from sdxl_core.nets.weights import export_model
from sdxl_core.training.contrastive import ImageTower
from sdxl_core.training.loop import LoopSettings
from sdxl_core.training.scene_autoencoder import train_autoencoder, train_decoder
from sdxl_core.training.scene_denoiser import PREDICTION_TYPE, train_denoiser
from sdxl_core.training.scene_latents import (
    TRAINING_BUCKETS,
    LatentShard,
    encode_scenes,
    load_shard,
    save_shard,
)
from sdxl_core.training.scene_text import TextEncoders, train_text_encoders

NetworkT = TypeVar("NetworkT", bound=nn.Module)

STAGES = ("vae", "text", "latents", "decoder", "base", "refiner", "export")
NUM_SAMPLES = 20_480
NUM_SPOILT_SAMPLES = 4_000


def save_network(network: nn.Module, path: Path) -> None:
    """Writes a network's tensors as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)


def filled(network: NetworkT, path: Path) -> NetworkT:
    """Fills a network with what ``save_network`` wrote."""
    network.load_state_dict(load_file(path))
    return network.eval()


def load_encoders(work: Path) -> TextEncoders:
    """Reads what stage ``text`` left."""
    return TextEncoders(
        text_1=filled(build_text_1(TINY), work / "text_1.safetensors"),
        text_2=filled(build_text_2(TINY), work / "text_2.safetensors"),
        image_tower=filled(
            ImageTower(TINY.text_2.projection_width), work / "image_tower.safetensors"
        ),
    )


def load_latents(work: Path, *, spoilt: bool) -> list[LatentShard]:
    """Reads what stage ``latents`` left, with or without the spoilt scenes."""
    return [
        load_shard(path)
        for path in sorted((work / "latents").glob("*.safetensors"))
        if spoilt or not path.name.startswith("spoilt")
    ]


def run_vae(work: Path) -> None:
    """Stage ``vae``."""
    settings = LoopSettings(num_steps=8000, peak_learning_rate=1e-3, ema_decay=0.998)
    save_network(train_autoencoder(TINY, work, settings=settings), work / "vae.safetensors")


def run_text(work: Path) -> None:
    """Stage ``text``."""
    settings = LoopSettings(num_steps=3500, peak_learning_rate=2.5e-3, autocast_dtype=None)
    encoders = train_text_encoders(TINY, work, settings=settings)
    save_network(encoders.text_1, work / "text_1.safetensors")
    save_network(encoders.text_2, work / "text_2.safetensors")
    save_network(encoders.image_tower, work / "image_tower.safetensors")


def run_latents(work: Path) -> None:
    """Stage ``latents``: every bucket by its share, plain scenes and spoilt ones."""
    vae = filled(build_vae(TINY), work / "vae.safetensors")
    (work / "latents").mkdir(exist_ok=True)
    for name, total, spoilt_share, first_seed in (
        ("plain", NUM_SAMPLES, 0.0, 1000),
        ("spoilt", NUM_SPOILT_SAMPLES, 0.7, 1100),
        ("more", NUM_SAMPLES, 0.0, 1200),
    ):
        for seed, (bucket, share) in enumerate(TRAINING_BUCKETS.items()):
            path = work / "latents" / f"{name}-{bucket[0]}x{bucket[1]}.safetensors"
            if not path.exists():
                shard = encode_scenes(
                    vae,
                    bucket=bucket,
                    num_samples=round(total * share),
                    seed=first_seed + seed,
                    spoilt_share=spoilt_share,
                )
                save_shard(shard, path)


def run_decoder(work: Path) -> None:
    """Stage ``decoder``."""
    vae = filled(build_vae(TINY), work / "vae.safetensors")
    settings = LoopSettings(num_steps=1000, peak_learning_rate=8e-4, ema_decay=0.995)
    train_decoder(vae, work, settings=settings)
    save_network(vae, work / "vae_final.safetensors")


def run_denoiser(work: Path, preset: ModelPreset) -> None:
    """Stages ``base`` and ``refiner``."""
    if preset.kind == "base":
        settings = LoopSettings(num_steps=9000, peak_learning_rate=8e-4)
    else:
        settings = LoopSettings(num_steps=3000, peak_learning_rate=1e-3)
    shards = load_latents(work, spoilt=preset.kind == "refiner")
    unet = train_denoiser(preset, load_encoders(work), shards, work, settings=settings)
    save_network(unet, work / f"{preset.name}.safetensors")


def run_export(work: Path, out: Path) -> None:
    """Stage ``export``: both models as float16 diffusers folders."""
    encoders = load_encoders(work)
    for preset in (TINY, TINY_REFINER):
        networks = build_networks(preset)
        networks["unet"] = filled(build_unet(preset), work / f"{preset.name}.safetensors")
        networks["vae"] = filled(build_vae(preset), work / "vae_final.safetensors")
        networks["text_encoder_2"] = encoders.text_2
        if preset.text_1 is not None:
            networks["text_encoder"] = encoders.text_1
        model = dataclasses.replace(model_of(preset, networks), prediction_type=PREDICTION_TYPE)
        export_model(model, out / preset.name, dtype=torch.float16)


def main() -> None:
    """Parses the command line and runs the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for states and latents")
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported models")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs = {
        "vae": lambda: run_vae(arguments.work),
        "text": lambda: run_text(arguments.work),
        "latents": lambda: run_latents(arguments.work),
        "decoder": lambda: run_decoder(arguments.work),
        "base": lambda: run_denoiser(arguments.work, TINY),
        "refiner": lambda: run_denoiser(arguments.work, TINY_REFINER),
        "export": lambda: run_export(arguments.work, arguments.out),
    }
    for stage in STAGES:
        if stage in arguments.stages:
            torch.manual_seed(arguments.seed)
            runs[stage]()


if __name__ == "__main__":
    main()
