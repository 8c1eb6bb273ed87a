"""What cannot work, as far as the settings of ``sdxl train`` tell it by themselves: refused before
Ray is started and before a sample or a weight is read."""

from cluster.tracking_services import check_services
from jobs.train_config import TrainConfig
from sdxl_core.contract.errors import ConfigError


def refuse_impossible(config: TrainConfig) -> None:
    """Checks settings against each other and against what is installed here.

    Raises:
        ConfigError: a tracker's library is missing, ``validate`` goes with neither a refiner nor
            ZeRO 3, or the workers that are asked for cannot share the batch.
    """
    check_services(config.how.trackers)
    if config.validate != "none":
        _refuse_validation(config)
    if config.how.workers:
        accumulated_passes(config, config.how.workers)


def accumulated_passes(config: TrainConfig, num_workers: int) -> int:
    """Forward passes of a worker in a step.

    Raises:
        ConfigError: the workers cannot share the batch evenly.
    """
    micro = config.how.micro_batch_size
    each = num_workers * (micro or 1)
    if config.batch % each:
        text = f" x how.micro_batch_size={micro}" if micro else ""
        raise ConfigError(
            f"batch: found {config.batch}, which {num_workers} workers{text} cannot share evenly; "
            f"expected a multiple of {each}. Change --batch, --how.workers or "
            "--how.micro-batch-size"
        )
    return config.batch // each if micro else 1


def _refuse_validation(config: TrainConfig) -> None:
    if config.stage == "refiner":
        raise ConfigError(
            f"validate: found {config.validate} in the stage refiner, expected none: a refiner "
            "cannot render alone. Leave --validate away, and render with sdxl export and generate"
        )
    if config.how.zero == 3:
        raise ConfigError(
            f"validate: found {config.validate} with --how.zero 3, expected --how.zero 1 or 2: at "
            "3 no worker has the whole network. Change one, or leave --validate away and render "
            "checkpoints with sdxl export and generate"
        )
