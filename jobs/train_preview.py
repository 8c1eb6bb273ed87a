"""What ``sdxl train --plan`` shows."""

import torch

from cluster.train_work import TrainWork
from jobs.registry import Plan
from jobs.train_start import Start
from sdxl_core.data.plan_coverage import Coverage
from sdxl_core.nets.components import network_builder
from sdxl_core.nets.flops import (
    num_unet_parameters,
    text_flops,
    unet_without_memory,
    vae_encode_flops,
)
from sdxl_core.training.autoencoder_network import AdversarialPair
from sdxl_core.training.lora import LoraSettings, num_lora_parameters
from sdxl_core.training.pieces import KINDS

# A card and a share of its peak that training may reach, for the hours: one H100 at 40 %.
_PEAK_FLOPS_PER_S, _ASSUMED_MFU = 989e12, 0.4


def preview(start: Start) -> Plan:
    """Steps, epochs, batches of each bucket, memory and work of a run."""
    work, epoch = start.work, start.epoch
    coverage = epoch.coverage()
    num_parameters, num_trained = _num_parameters(start)
    state = state_bytes(
        num_trained,
        work.min_workers,  # the fewer there are, the more each of them holds
        work.zero_stage,
        precision_bytes=_bytes(work.precision),
        num_frozen=0 if work.lora is None else num_parameters,
    )
    # An epoch's mix of buckets stands for the run's.
    epoch_flops = sum(
        work.flops_of_bucket[line.bucket] * line.num_drawn for line in coverage.buckets
    )
    flops = epoch_flops * work.num_steps / epoch.num_batches
    encoding = _encoding_flops(start) * work.num_steps / epoch.num_batches
    hours = flops / (_PEAK_FLOPS_PER_S * _ASSUMED_MFU) / 3600
    num_epochs = work.num_steps / epoch.num_batches
    buckets = _bucket_values(coverage)
    lines = [
        f"{work.stage}: {num_parameters / 1e6:.2f} M weights, from "
        f"{'random numbers' if work.is_fresh else work.model}",
        *_adapter_lines(work.lora, num_trained),
        f"{coverage.num_rows} samples, {work.ingest.view.pixels}, texts {work.ingest.view.texts}; "
        f"{work.num_steps} steps = {num_epochs:.2f} epochs of {epoch.num_batches} batches",
        *_holdout_lines(work),
        *_encoder_lines(work, encoding / flops if flops else 0.0),
        f"first epoch: {coverage.num_unseen} samples not seen, {coverage.num_repeated} twice or "
        "more",
        *(
            f"  {name}: {line['num_rows']} samples, {line['num_batches']} batches of "
            f"{line['batch_size']}"
            for name, line in buckets.items()
        ),
        f"{_workers(work)} workers on {work.device}, {work.ingest.num_accumulated} passes each "
        f"step, ZeRO {work.zero_stage}: {state / 1e9:.3g} GB of weights, gradients and optimizer "
        "on each worker; activations come on top",
        f"{flops:.3g} FLOP (forward and backward), {hours:.3g} hours on one H100 if it reached "
        f"{_ASSUMED_MFU:.0%} of its peak",
    ]
    values = {
        "num_samples": coverage.num_rows,
        "num_measured": 0 if work.holdout is None else len(work.holdout.rows),
        "num_steps": work.num_steps,
        "num_epochs": num_epochs,
        "batches_per_epoch": epoch.num_batches,
        "buckets": buckets,
        "num_parameters": num_parameters,
        "num_trained_parameters": num_trained,
        "state_bytes_per_worker": state,
        "flops": flops,
        "encoding_flops": encoding,
        "h100_hours_at_40_percent": hours,
        "fingerprint": work.fingerprint,
    }
    return Plan(lines=tuple(lines), values=values)


def _bucket_values(coverage: Coverage) -> dict[str, dict[str, int]]:
    return {
        f"{line.bucket[0]}x{line.bucket[1]}": {
            "num_rows": line.num_rows,
            "batch_size": line.batch_size,
            "num_batches": line.num_batches,
            "num_unseen": line.num_unseen,
            "num_repeated": line.num_repeated,
        }
        for line in coverage.buckets
    }


def _num_parameters(start: Start) -> tuple[int, int]:
    """All weights of the network, and those that are trained."""
    work, preset = start.work, start.preset
    if work.autoencoder is not None:
        with torch.device("meta"):
            vae = network_builder("vae")(preset)
            pair = AdversarialPair(vae, work.autoencoder, seed=0)
        num_parameters = sum(parameter.numel() for parameter in pair.parameters())
        return num_parameters, num_parameters
    num_parameters = num_unet_parameters(preset)
    if work.lora is None:
        return num_parameters, num_parameters
    return num_parameters, num_lora_parameters(unet_without_memory(preset), work.lora)


def _adapter_lines(lora: LoraSettings | None, num_trained: int) -> list[str]:
    if lora is None:
        return []
    return [
        f"adapter of rank {lora.rank}, alpha {lora.used_alpha:g}, on the layers '{lora.targets}': "
        f"{num_trained / 1e6:.2f} M weights are trained, the others stand still"
    ]


def _workers(work: TrainWork) -> str:
    if work.min_workers == work.num_workers:
        return str(work.num_workers)
    return f"{work.min_workers} to {work.num_workers}"


def _holdout_lines(work: TrainWork) -> list[str]:
    if work.holdout is None:
        return []
    lines = [
        f"beside them {work.ingest.holdout:g} of all samples are set aside; the loss of "
        f"{len(work.holdout.rows)} of these is measured every {work.holdout.every} steps"
    ]
    if work.autoencoder is not None:
        inception = work.autoencoder.inception
        lines.append(
            f"their rFID is measured with {inception}"
            if inception
            else "their rFID is not: --vae.inception names no network"
        )
    return lines


def _encoding_flops(start: Start) -> float:
    """Operations of an epoch that turn pictures and captions into what the UNet reads."""
    view, preset = start.work.ingest.view, start.preset
    if start.work.autoencoder is not None:
        return 0.0
    text = text_flops(preset) if view.texts == "live" else 0
    return sum(
        line.num_drawn
        * (text + (vae_encode_flops(preset, *line.bucket) if view.pixels == "images" else 0))
        for line in start.epoch.coverage().buckets
    )


def _encoder_lines(work: TrainWork, share: float) -> list[str]:
    if not share:
        return []
    who = f"encoders ({work.num_encoders} of them)" if work.num_encoders else "the workers"
    what = "pictures and captions" if work.ingest.view.pixels == "images" else "captions"
    if work.ingest.view.texts == "stored":
        what = "pictures"
    return [f"{what} are encoded by {who}: {share:.1%} of the training's FLOP, on top of them"]


def state_bytes(
    num_parameters: int,
    num_workers: int,
    stage: int,
    *,
    precision_bytes: int,
    num_frozen: int = 0,
) -> float:
    """Bytes of weights, gradients and optimizer on each worker.

    Args:
        num_parameters: that are trained.
        num_workers: of the run.
        stage: of ZeRO.
        precision_bytes: of one weight or gradient of the network.
        num_frozen: parameters beside them that stand still.
    """
    gradients = float(precision_bytes * num_parameters)
    weights = float(precision_bytes * (num_parameters + num_frozen))
    # float32: the optimizer's weights, two moments, the running mean.
    optimizer = 4.0 * len(KINDS) * num_parameters / num_workers
    if stage >= 2:
        gradients /= num_workers
    if stage == 3:
        weights /= num_workers
    return weights + gradients + optimizer


def _bytes(precision: str) -> int:
    return 2 if precision == "bfloat16" else 4
