"""What ``sdxl train --plan`` shows."""

from jobs.registry import Plan
from jobs.train_start import Start
from sdxl_core.nets.flops import num_unet_parameters
from sdxl_core.training.pieces import KINDS

# A card and a share of its peak that training may reach, for the hours: one H100 at 40 %.
_PEAK_FLOPS_PER_S, _ASSUMED_MFU = 989e12, 0.4


def preview(start: Start) -> Plan:
    """Steps, epochs, batches of each bucket, memory and work of a run."""
    work, epoch = start.work, start.epoch
    coverage = epoch.coverage()
    num_parameters = num_unet_parameters(start.preset)
    state = state_bytes(
        num_parameters, work.num_workers, work.zero_stage, precision_bytes=_bytes(work.precision)
    )
    # An epoch's mix of buckets stands for the run's.
    epoch_flops = sum(
        3.0 * work.flops_of_bucket[line.bucket] * line.num_drawn for line in coverage.buckets
    )
    flops = epoch_flops * work.num_steps / epoch.num_batches
    hours = flops / (_PEAK_FLOPS_PER_S * _ASSUMED_MFU) / 3600
    num_epochs = work.num_steps / epoch.num_batches
    buckets = {
        f"{line.bucket[0]}x{line.bucket[1]}": {
            "num_rows": line.num_rows,
            "batch_size": line.batch_size,
            "num_batches": line.num_batches,
            "num_unseen": line.num_unseen,
            "num_repeated": line.num_repeated,
        }
        for line in coverage.buckets
    }
    lines = [
        f"{work.kind}: {num_parameters / 1e6:.2f} M weights, from "
        f"{'random numbers' if work.is_fresh else work.model}",
        f"{coverage.num_rows} samples, {work.ingest.view.pixels}, texts {work.ingest.view.texts}; "
        f"{work.num_steps} steps = {num_epochs:.2f} epochs of {epoch.num_batches} batches",
        f"first epoch: {coverage.num_unseen} samples not seen, {coverage.num_repeated} twice or "
        "more",
        *(
            f"  {name}: {line['num_rows']} samples, {line['num_batches']} batches of "
            f"{line['batch_size']}"
            for name, line in buckets.items()
        ),
        f"{work.num_workers} workers on {work.device}, {work.ingest.num_accumulated} passes each "
        f"step, ZeRO {work.zero_stage}: {state / 1e9:.3g} GB of weights, gradients and optimizer "
        "on each worker; activations come on top",
        f"{flops:.3g} FLOP (forward and backward), {hours:.3g} hours on one H100 if it reached "
        f"{_ASSUMED_MFU:.0%} of its peak",
    ]
    values = {
        "num_samples": coverage.num_rows,
        "num_steps": work.num_steps,
        "num_epochs": num_epochs,
        "batches_per_epoch": epoch.num_batches,
        "buckets": buckets,
        "num_parameters": num_parameters,
        "state_bytes_per_worker": state,
        "flops": flops,
        "h100_hours_at_40_percent": hours,
        "fingerprint": work.fingerprint,
    }
    return Plan(lines=tuple(lines), values=values)


def state_bytes(
    num_parameters: int, num_workers: int, stage: int, *, precision_bytes: int
) -> float:
    """Bytes of weights, gradients and optimizer on each worker.

    Args:
        num_parameters: that are trained.
        num_workers: of the run.
        stage: of ZeRO.
        precision_bytes: of one weight or gradient of the network.
    """
    weights = gradients = float(precision_bytes * num_parameters)
    # float32: the optimizer's weights, two moments, the running mean.
    optimizer = 4.0 * len(KINDS) * num_parameters / num_workers
    if stage >= 2:
        gradients /= num_workers
    if stage == 3:
        weights /= num_workers
    return weights + gradients + optimizer


def _bytes(precision: str) -> int:
    return 2 if precision == "bfloat16" else 4
