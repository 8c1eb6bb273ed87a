"""The networks of one training worker: the trained one, and those that samples go through."""

from typing import Any

import torch
from torch import nn

from cluster.train_work import TrainWork
from cluster.work import DTYPES
from sdxl_core.nets.components import network_builder
from sdxl_core.nets.model import trained_as
from sdxl_core.nets.weights import load_model
from sdxl_core.training.autoencoder_network import AdversarialPair
from sdxl_core.training.conditions import allow_dropped_numbers
from sdxl_core.training.frozen_parts import FrozenParts, freeze
from sdxl_core.training.lora import add_lora
from sdxl_core.training.memory_layout import use_channels_last_activations


def load_trained(work: TrainWork) -> nn.Module:
    """The network that is trained, float32 on the CPU in training mode; the same on all workers.

    With an adapter, its parameters alone need a gradient.
    """
    model = load_model(work.model, variant=work.variant, components=("unet",))
    network: Any = model.unet
    if work.is_fresh:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed)
            network = network_builder("unet")(model.preset)
    allow_dropped_numbers(network)
    if work.lora is not None:
        add_lora(network, work.lora, seed=work.seed)
    if work.activation_checkpointing:
        network.enable_gradient_checkpointing()
    if work.channels_last:
        use_channels_last_activations(network)
    if work.compile:
        from sdxl_core.training.compilation import compile_for_sizes

        compile_for_sizes(network, len(work.ingest.manifest.buckets))
    trained: nn.Module = network.train()
    return trained


def load_autoencoder(work: TrainWork) -> AdversarialPair:
    """The autoencoder that is trained with a new discriminator beside it, as ``load_trained``."""
    assert work.autoencoder is not None
    model = load_model(work.model, variant=work.variant, components=("vae",))
    network: Any = model.vae
    if work.is_fresh:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed)
            network = network_builder("vae")(model.preset)
    if work.activation_checkpointing:
        network.enable_gradient_checkpointing()
    pair: Any = AdversarialPair(network, work.autoencoder, seed=work.seed).train()
    if work.channels_last:
        use_channels_last_activations(pair)
    trained: AdversarialPair = pair
    return trained


def load_frozen(work: TrainWork, device: str, *, encodes: bool) -> FrozenParts:
    """The networks that samples go through, as far as this run needs them.

    Args:
        work: the run.
        device: of the networks.
        encodes: do samples go through them here, or come encoded.

    Raises:
        WeightsError: the model's files cannot be read.
    """
    components = []
    assert work.objective is not None
    drops_text = work.kind == "refiner" and work.objective.dropout.text > 0
    takes_text = encodes and work.ingest.view.texts == "live"
    if takes_text or drops_text or work.validation is not None:
        components += ["text_encoder_2"]
        components += ["text_encoder"] if work.kind == "base" else []
    takes_pictures = encodes and work.ingest.view.pixels == "images"
    if takes_pictures or work.validation is not None:
        components += ["vae"]
    model = load_model(
        work.model,
        dtype=DTYPES[work.frozen_precision],
        vae_dtype=torch.float32,
        device=device,
        variant=work.variant,
        components=components,
    )
    # Validation prompts are rendered with it.
    model = trained_as(
        model,
        prediction_type=work.objective.prediction_type,
        zero_terminal_snr=work.objective.zero_terminal_snr,
    )
    return freeze(model, device=device, drops_captions=drops_text)
