"""What a training is made of that its settings do not say: digests of what lies at the places that
they name."""

import hashlib
import json
from pathlib import Path

from jobs.train_config import TrainConfig
from sdxl_core.contract.config import fingerprint
from sdxl_core.contract.errors import ConfigError
from sdxl_core.nets.model import SdxlModel
from sdxl_core.nets.pipeline_configs import scheduler_config, settings_of
from sdxl_core.training.checkpoint_store import sha256_of


def training_fingerprint(config: TrainConfig, *, samples: str, model: str, scheduler: str) -> str:
    """16 hex digits that are equal when and only when the same is trained.

    Args:
        config: all settings.
        samples: digest of all samples, held-out ones included.
        model: digest of the networks.
        scheduler: see ``scheduler_digest``.

    Raises:
        ConfigError: a file of the perceptual distance cannot be read.
    """
    identities = {"samples": samples, "model": model, "scheduler": scheduler}
    if config.stage == "vae":
        identities |= lpips_digests(config)
    return fingerprint(config, **identities)


def scheduler_digest(model: SdxlModel) -> str:
    """SHA-256, hex, of what the model's scheduler_config says: prediction type, schedule, spacing.

    Both layouts of the same model have the same.
    """
    content = scheduler_config(settings_of(model))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def lpips_digests(config: TrainConfig) -> dict[str, str]:
    """SHA-256, hex, of the files of the perceptual distance, by option; nothing without them.

    Raises:
        ConfigError: a file cannot be read.
    """
    if not config.vae.lpips_vgg:
        return {}
    found = {}
    for name, expected in (
        ("lpips_vgg", "torchvision's VGG-16"),
        ("lpips_channels", "channel weights of LPIPS 0.1 for VGG"),
    ):
        path = Path(getattr(config.vae, name))
        try:
            found[name] = sha256_of(path)
        except OSError as error:
            raise ConfigError(
                f"vae.{name}: {path} cannot be read: {error.strerror}; expected {expected} as a "
                "local file, here and at the same path on every worker"
            ) from error
    return found
