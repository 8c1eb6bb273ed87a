from pathlib import Path
from typing import Any

import pytest

import jobs
from jobs.train_config import TrainConfig, TrainHow, parse_bucket_weights
from jobs.train_preview import state_bytes
from jobs.train_vae import AutoencoderOptions
from sdxl_core.contract.config import read_recipe
from sdxl_core.contract.errors import ConfigError

RECIPES = sorted((Path(jobs.__file__).parent / "recipes").glob("*/*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_is_a_training(path: Path) -> None:
    config = TrainConfig(samples="s", out="o", **read_recipe(TrainConfig, path))
    assert config.stage == (path.stem if path.stem in ("refiner", "vae") else "base")


def test_recipes_have_the_numbers_of_the_paper() -> None:
    folder = Path(jobs.__file__).parent / "recipes" / "sdxl"
    first = read_recipe(TrainConfig, folder / "256.toml")
    assert (first["steps"], first["batch"], first["fresh"]) == (600_000, 2048, True)
    assert read_recipe(TrainConfig, folder / "512.toml")["steps"] == 200_000
    assert read_recipe(TrainConfig, folder / "multi-aspect.toml")["offset_noise"] == 0.05
    assert read_recipe(TrainConfig, folder / "refiner.toml")["max_timestep"] == 200
    assert read_recipe(TrainConfig, folder / "vae.toml")["batch"] == 256


def test_a_number_that_the_paper_leaves_out_is_marked_in_the_recipe() -> None:
    for path in RECIPES:
        if path.parent.name != "sdxl":
            continue
        lines = path.read_text().splitlines()
        published = {"stage", "fresh", "zero", "activation_checkpointing", "channels_last"}
        published |= {"checkpoint_every", "report_every"}  # ours to choose
        known = {"256": {"steps", "batch"}, "512": {"steps"}, "refiner": {"max_timestep"}}
        known |= {"multi-aspect": {"offset_noise"}, "lora": set(), "vae": {"batch"}}
        for line in lines:
            name, is_setting, _ = line.partition(" = ")
            if not is_setting or line.startswith("#") or name in published | known[path.stem]:
                continue
            assert "#" in line, f"{path.name}: {line}"


def test_bucket_weights_are_read_height_first() -> None:
    assert parse_bucket_weights(("512x2048=2", "64x32=0.5")) == {(512, 2048): 2.0, (64, 32): 0.5}
    with pytest.raises(ConfigError, match="bucket_weights: found '512=2'"):
        TrainConfig(samples="s", out="o", bucket_weights=("512=2",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch: found 0"),
        ({"ema_decay": 1.0}, "ema_decay: found 1.0, expected less than 1"),
        ({"learning_rate": 0.0}, "learning_rate: found 0.0, expected more than 0"),
        ({"stage": "vae", "lora_rank": 4}, "lora_rank: is for the stages base and refiner"),
        ({"stage": "vae", "how": TrainHow(zero=3)}, "how.zero 3: is for the stages base"),
        ({"holdout": 1.0}, "holdout: found 1.0, expected 0 to less than 1"),
        ({"holdout_samples": 0}, "holdout_samples: found 0, expected 1 or more"),
        ({"lora_rank": -1}, "lora_rank: found -1, expected 0 or more"),
        ({"lora_alpha": 8.0}, "found without lora_rank"),
        ({"lora_targets": "transformer"}, "found without lora_rank"),
        ({"lora_rank": 4, "fresh": True}, "fresh: an adapter beside random weights"),
        ({"warmup_steps": 5, "decay_steps": 5}, "decay_steps: found 5, expected more than"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(samples="s", out="o", **settings)


def test_state_of_a_worker_shrinks_with_the_stage() -> None:
    """16 bytes of optimizer (weights, two moments, running mean), 2 of weight, 2 of gradient."""
    found = [state_bytes(100, 4, stage, precision_bytes=2) for stage in (1, 2, 3)]
    assert found == [200 + 200 + 400, 200 + 50 + 400, 50 + 50 + 400]


def test_weights_that_stand_still_are_held_without_gradient_and_optimizer() -> None:
    alone = [state_bytes(10, 4, stage, precision_bytes=2) for stage in (1, 2, 3)]
    beside = [state_bytes(10, 4, stage, precision_bytes=2, num_frozen=100) for stage in (1, 2, 3)]
    added = [whole - own for whole, own in zip(beside, alone, strict=True)]
    assert added == [200, 200, 50]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discriminator_channels": 48}, "vae.discriminator_channels: found 48, expected a power"),
        ({"discriminator_layers": 0}, "vae.discriminator_layers: found 0, expected 1 to 5"),
        ({"lpips_vgg": "vgg.pth"}, "found one of them, expected both files or none"),
    ],
)
def test_settings_of_the_autoencoder_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencoderOptions(**settings)
