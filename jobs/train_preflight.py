"""What cannot work, as far as the settings of ``sdxl train`` tell it by themselves: refused before
Ray is started and before a sample or a weight is read."""

import importlib.util
from pathlib import Path

from cluster.tracking_services import check_services
from cluster.train_size import refuse_sizes
from jobs.train_config import TrainConfig
from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.weights_source import PICKLE_SUFFIXES, pickle_advice


def refuse_impossible(config: TrainConfig) -> None:
    """Checks settings against each other and against what is installed here.

    Raises:
        ConfigError: a tracker's library is missing, ``vae.inception`` has no pictures to look at or
            is no file, ``validate`` goes with neither a refiner nor ZeRO 3, ``encoders`` not with a
            range of workers, or the workers that are asked for cannot share the batch.
    """
    check_services(config.how.trackers)
    if config.vae.inception:
        _refuse_inception(config)
    if config.validate != "none":
        _refuse_validation(config)
    if config.how.encoders and config.how.min_workers:
        raise ConfigError(
            f"how.encoders: found {config.how.encoders} with how.min_workers="
            f"{config.how.min_workers}, expected one of them: Ray Train would count the encoders' "
            "devices as room for more workers"
        )
    if config.how.workers:
        refuse_workers(config, config.how.workers)


def refuse_workers(config: TrainConfig, most: int) -> range:
    """The numbers of workers that the run may have, at most ``most``.

    Raises:
        ConfigError: workers of some number cannot share the batch evenly.
    """
    least = config.how.min_workers or most
    if least > most:
        raise ConfigError(
            f"how.min_workers: found {least}, but there are {most} workers at most; expected fewer"
        )
    sizes = range(least, most + 1)
    refuse_sizes(config.batch, sizes, config.how.micro_batch_size)
    return sizes


def _refuse_inception(config: TrainConfig) -> None:
    path = Path(config.vae.inception)
    if config.stage != "vae" or not config.holdout:
        raise ConfigError(
            f"vae.inception: found {path} in the stage {config.stage} with --holdout "
            f"{config.holdout:g}, expected --stage vae with a share of samples that are held out: "
            "rFID is measured on these. Give --holdout, or leave --vae.inception away"
        )
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ConfigError(
            "vae.inception: torch-fidelity is not installed: pip install 'sdxl-ray[train]', here "
            "and on every worker"
        )
    if path.suffix in PICKLE_SUFFIXES:
        raise ConfigError(f"vae.inception: {pickle_advice(str(path))}")
    if not path.is_file():
        raise ConfigError(
            f"vae.inception: {path} is no file; expected FID's Inception network as safetensors, a "
            "local file here and at the same path on every worker"
        )


def refuse_one_picture(config: TrainConfig, num_held: int) -> None:
    """Checks that there is something for rFID to compare, once the held-out samples are known.

    Raises:
        ConfigError: there is one picture only.
    """
    if config.vae.inception and num_held < 2:
        raise ConfigError(
            f"vae.inception: found {num_held} picture to measure, expected two or more; rFID wants "
            "hundreds. Give a larger --holdout or --holdout-samples"
        )


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
