"""How the work of ``sdxl train`` is spread: settings that change nothing of what is trained."""

from typing import Annotated, Literal

import tyro

from sdxl_core.contract.config import config
from sdxl_core.contract.errors import ConfigError

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def check(name: str, found: object, is_right: bool, expected: str) -> None:
    """Raises a ConfigError about the setting ``name`` unless ``is_right``."""
    if not is_right:
        raise ConfigError(f"{name}: found {found}, expected {expected}")


@config
class TrainHow:
    """How the work is spread. May change between resumes; changes no more than the last digits,
    save for the autoencoder, whose discriminator is weighed by the samples of one forward pass."""

    address: str | None = None
    """Ray cluster; None takes RAY_ADDRESS, or starts Ray on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto is cuda when the cluster has GPUs."""
    workers: int = 0
    """Training workers; 0 takes one for each GPU, or one on CPUs."""
    min_workers: int = 0
    """Go on with fewer workers, down to so many, when machines are lost, and with more again, up to
    how.workers, when there are some; 0: never another number."""
    encoders: int = 0
    """Actors beside the workers, each with a GPU of its own if there are any, that encode pictures
    and captions; 0: the workers do it themselves."""
    micro_batch_size: int = 0
    """Samples in one forward pass of a worker; 0: a worker's whole share of the batch."""
    zero: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO: 1 shards the optimizer over the workers, 2 gradients too, 3 weights too."""
    offload_optimizer: Flag = False
    """Keep the optimizer's state in the memory of the host."""
    activation_checkpointing: Flag = False
    """Compute activations again in the backward pass: less memory, a third more work."""
    channels_last: Flag = False
    """Memory layout of convolutions that is faster on GPUs."""
    compile: Flag = False
    """Run the network through torch.compile, once for each bucket."""
    cpu_threads: int = 1
    """Torch threads of each worker on the CPU."""
    batches_ahead: int = 4
    """Global batches that are read before they are asked for."""
    report_every: int = 10
    """Steps from report to report; a request to stop waits for one."""
    checkpoint_every: int = 500
    """Steps from checkpoint to checkpoint; there is always one at the end."""
    keep_checkpoints: int = 3
    """Checkpoints that stay; older ones are deleted."""
    max_failures: int = 3
    """The job stops when workers were lost this often; a machine that is taken back counts not."""
    max_skipped: int = 20
    """The job stops when the gradients of so many steps in a row were not finite."""
    validate_every: int = 500
    """Steps from one rendering of the --validate prompts, or one measurement of --holdout, to the
    next."""
    tensorboard: bool = True
    """Write TensorBoard's files into OUT/tensorboard."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Report to these as well; where to is said by WANDB_* and MLFLOW_* of the environment."""
    stop_grace_s: float = 600.0
    """How long Ctrl-C or SIGTERM waits for a checkpoint."""
    retries: int = 6
    """Tries of one storage operation that may succeed later."""
    timeout_s: float = 30.0
    """Of one storage operation."""

    def __post_init__(self) -> None:
        for name in ("report_every", "checkpoint_every", "validate_every", "keep_checkpoints"):
            check(f"how.{name}", getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in (
            *("workers", "min_workers", "encoders"),
            *("micro_batch_size", "batches_ahead", "max_failures"),
        ):
            check(f"how.{name}", getattr(self, name), getattr(self, name) >= 0, "0 or more")
        check("how.max_skipped", self.max_skipped, self.max_skipped >= 1, "1 or more")
        check("how.cpu_threads", self.cpu_threads, self.cpu_threads >= 1, "1 or more")
