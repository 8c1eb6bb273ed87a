"""The training loop of one worker: a plain function of a process group, with no launcher around it.

All workers run it side by side on their shares of the same global batches. They meet in the
optimizer's step, and in a report every few steps, where they also agree on whether to stop.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator

import torch.distributed as dist

from cluster.checkpoints import Checkpointer, Progress
from cluster.ingest import RankStep
from cluster.train_meter import Meter, Wishes
from cluster.zero import ZeroEngine
from sdxl_core.contract.errors import JobError
from sdxl_core.training.seeded_batches import SampleBatch
from sdxl_core.training.seeded_objective import SampleLosses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long, and how often what is done beside the steps.

    Args:
        num_steps: global batches in all.
        learning_rate_at: of the step after so many global batches.
        report_every: steps from report to report; a request to stop waits for one.
        checkpoint_every: steps from checkpoint to checkpoint; there is always one at the end.
        max_skipped_in_row: the run stops when so many gradients in a row were not finite.
        validate_every: steps from one call of ``on_validation`` to the next; there is always one at
            the end; 0: never.
    """

    num_steps: int
    learning_rate_at: Callable[[int], float]
    report_every: int
    checkpoint_every: int
    max_skipped_in_row: int = 20
    validate_every: int = 0

    def is_checkpoint_due(self, step: int) -> bool:
        """Is a checkpoint to be taken after ``step`` steps."""
        return step == self.num_steps or step % self.checkpoint_every == 0

    def is_validation_due(self, step: int) -> bool:
        """Is it time to measure and to render after ``step`` steps."""
        is_due = step == self.num_steps or step % max(1, self.validate_every) == 0
        return bool(self.validate_every) and is_due


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the loop has ended."""

    progress: Progress
    is_finished: bool


def train_loop(
    engine: ZeroEngine,
    steps: Iterator[RankStep],
    losses_of: Callable[[SampleBatch, int], SampleLosses],
    *,
    settings: LoopSettings,
    start: Progress,
    checkpointer: Checkpointer,
    meter: Meter,
    ask: Callable[[], Wishes],
    on_report: Callable[[Progress, dict[str, float]], None],
    on_checkpoint: Callable[[], None],
    on_validation: Callable[[Progress], dict[str, float]] | None = None,
) -> Outcome:
    """Trains until ``num_steps`` or until some worker is asked to stop; takes a checkpoint then.

    Args:
        engine: with the state of ``start``.
        steps: this worker's share of the global batches after ``start``.
        losses_of: calls the engine's module on samples, which come after so many global batches.
        settings: see there.
        start: where the run stands.
        checkpointer: writes the state; ``meter`` counts.
        ask: called at every report, on every worker; the wish of one is the wish of all.
        on_report: gets what all workers found, on every worker.
        on_checkpoint: called before each, on every worker: what was reported is to be safe by then.
        on_validation: called on every worker; leaves the engine's state as it is. What it returns
            is reported with its step.

    Returns:
        Where the run stands now. The checkpoint of it is written and committed.

    Raises:
        JobError: too many gradients in a row were not finite.
        SdxlError: samples cannot be read, a checkpoint cannot be written.
    """
    progress, began = start, time.monotonic()
    for step in itertools.islice(steps, max(0, settings.num_steps - start.step)):
        assert step.index == progress.step, (step.index, progress.step)
        engine.set_learning_rate(settings.learning_rate_at(progress.step), step=progress.step)
        _take_step(engine, step, losses_of, meter)
        progress = _advance(engine, progress, step, settings)
        is_last, wishes = progress.step == settings.num_steps, Wishes()
        found = _validate(on_validation, progress, settings, meter)
        if is_last or found is not None or progress.step % settings.report_every == 0:
            report = meter.report(ask())
            seconds_per_step = (time.monotonic() - began) / (progress.step - start.step)
            own = _values(engine, progress, settings, seconds_per_step)
            on_report(progress, report.values | own | (found or {}))
            wishes = report.wishes
        if settings.is_checkpoint_due(progress.step) or wishes.checkpoint or wishes.stop:
            on_checkpoint()
            checkpointer.save(engine, progress)
        if wishes.stop:
            break
        if wishes.checkpoint:  # a machine will soon be gone: what is in flight goes first
            checkpointer.finish()
    checkpointer.finish()
    dist.barrier()  # the first worker has committed
    return Outcome(progress=progress, is_finished=progress.step >= settings.num_steps)


def _validate(
    on_validation: Callable[[Progress], dict[str, float]] | None,
    progress: Progress,
    settings: LoopSettings,
    meter: Meter,
) -> dict[str, float] | None:
    """What was found, if it was time to look; it counts as no time of training."""
    if on_validation is None or not settings.is_validation_due(progress.step):
        return None
    with meter.leaving_out():
        return on_validation(progress)


def _take_step(
    engine: ZeroEngine,
    step: RankStep,
    losses_of: Callable[[SampleBatch, int], SampleLosses],
    meter: Meter,
) -> None:
    for samples in step.batches:
        losses = losses_of(samples, step.index)
        engine.backward_and_step(losses.loss_B.mean())
        meter.add_losses(step.bucket, losses)
    meter.add_wait(step.wait_s)


def _advance(
    engine: ZeroEngine, progress: Progress, step: RankStep, settings: LoopSettings
) -> Progress:
    """Where the run stands after a step; the running mean has followed the weights."""
    was_skipped = engine.was_skipped
    if not was_skipped:
        engine.update_average()
    in_row = progress.num_skipped_in_row + 1 if was_skipped else 0
    if in_row >= settings.max_skipped_in_row:
        raise JobError(
            f"step {progress.step}: the gradients of {in_row} steps in a row were not finite, the "
            f"last one's of bucket {step.bucket[0]}x{step.bucket[1]}. The checkpoint before them "
            "stays; lower the learning rate, or look at the samples "
            f"{', '.join(step.batches[0].ids[:3])}"
        )
    num_samples = sum(len(samples.ids) for samples in step.batches) * dist.get_world_size()
    return Progress(
        step=progress.step + 1,
        num_updates=progress.num_updates + (not was_skipped),
        num_skipped=progress.num_skipped + was_skipped,
        num_skipped_in_row=in_row,
        num_samples=progress.num_samples + num_samples,
    )


def _values(
    engine: ZeroEngine, progress: Progress, settings: LoopSettings, seconds_per_step: float
) -> dict[str, float]:
    return {
        "grad_norm": engine.gradient_norm(),
        "learning_rate": settings.learning_rate_at(progress.step - 1),
        "num_skipped": float(progress.num_skipped),
        "num_samples": float(progress.num_samples),
        "eta_s": seconds_per_step * (settings.num_steps - progress.step),
    }
