"""From pictures to pictures: prepare, train a base and a refiner with two workers, kill, resume,
export, generate. Micro models on the CPU; everything else is the product."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.export import ExportConfig
from jobs.export import run as export
from jobs.generate import run as generate
from jobs.prepare import run as prepare
from jobs.train import plan, run
from jobs.train_config import TrainConfig, TrainHow
from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.stores import open_store
from sdxl_core.training.checkpoint_store import committed_steps
from tests.cluster.train_samples import write_samples
from tests.flow import kit, prepare_kit
from tests.flow.train_kit import state_hashes
from tests.micro_models import MicroModels

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_STEPS = 6


@pytest.fixture(scope="module")
def samples(local_ray: None, models: MicroModels, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Latents of real small pictures with aesthetic scores."""
    folder = tmp_path_factory.mktemp("samples")
    source = prepare_kit.write_folder(folder / "source", prepare_kit.good_rows(24))
    settings = prepare_kit.settings(
        source, folder / "out", latents=True, model=models.base, area="64x64", preset="sdxl"
    )
    assert prepare(settings).num_samples > 16
    return str(folder / "out")


def settings(samples: str, out: Path, model: str, **more: Any) -> TrainConfig:
    how = {"workers": 2, "checkpoint_every": 2, "report_every": 1, "retries": 2}
    how |= more.pop("how", {})
    values: dict[str, Any] = {"steps": NUM_STEPS, "batch": 4, "learning_rate": 1e-3}
    values |= {"ema_decay": 0.5, "any_latents": True} | more
    return TrainConfig(samples=samples, out=str(out), model=model, how=TrainHow(**how), **values)


def command(samples: str, out: Path, model: str, *flags: str) -> list[str]:
    """The command of ``settings``, for another process."""
    return [
        sys.executable, "-m", "jobs", "train", samples, str(out), "--model", model,
        "--steps", str(NUM_STEPS), "--batch", "4", "--learning-rate", "1e-3", "--ema-decay", "0.5",
        "--any-latents", "--how.workers", "2", "--how.checkpoint-every", "2",
        "--how.report-every", "1", "--how.retries", "2", *flags,
    ]  # fmt: skip


def workers(pid: int) -> list[int]:
    return [p for p, title in kit.descendants(pid).items() if "RayTrainWorker" in title]


def test_a_killed_training_ends_with_the_same_bits_and_its_model_renders(
    samples: str, models: MicroModels, tmp_path: Path
) -> None:
    straight = run(settings(samples, tmp_path / "straight", models.base))
    assert (straight.step, straight.num_steps_now, straight.num_skipped) == (6, 6, 0)
    out = tmp_path / "killed"
    with kit.running(command(samples, out, models.base), tmp_path / "log") as process:
        # A worker dies: Ray Train starts both again. Then the command itself is killed.
        kit.wait_until(lambda: committed_steps(open_store(out)), "a checkpoint", timeout_s=400)
        for pid in workers(process.pid)[:1]:
            os.kill(pid, signal.SIGKILL)
        kit.wait_until(
            lambda: committed_steps(open_store(out))[-1:] > [2], "one after it", timeout_s=400
        )
    if committed_steps(open_store(out))[-1] < NUM_STEPS:
        assert subprocess.call(command(samples, out, models.base), cwd=kit.REPOSITORY) == 0
    again = run(settings(samples, out, models.base))
    assert (again.step, again.num_steps_now) == (6, 0)
    assert state_hashes(out) == state_hashes(tmp_path / "straight")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert all(line["loss"] > 0 and 0 <= line["data_wait_share"] <= 1 for line in lines)
    refined = run(settings(samples, tmp_path / "refiner", models.refiner, stage="refiner", steps=2))
    single = tmp_path / "single.safetensors"
    export(ExportConfig(checkpoint=str(out), out=str(single), layout="single-file"))
    table = kit.write_csv(tmp_path / "p.csv", kit.plain_rows(3))
    for number, base in enumerate((again.model, str(single))):
        assert base is not None
        assert refined.model is not None
        summary = generate(
            kit.settings(
                MicroModels(base=base, refiner=refined.model), table, tmp_path / f"images{number}"
            )
        )
        assert (summary.num_rows, summary.num_failed) == (3, 0)
    assert kit.hashes(tmp_path / "images0") == kit.hashes(tmp_path / "images1")


def test_sigterm_takes_a_checkpoint_and_exits_130(
    samples: str, models: MicroModels, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--steps", "100000", "--how.checkpoint-every", "100000")
    with kit.running(command(samples, out, models.base, *flags), tmp_path / "log") as process:
        kit.wait_until(
            lambda: "step 2/" in (tmp_path / "log").read_text(errors="replace"),
            "the second step",
            timeout_s=400,
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 130
    (step,) = committed_steps(open_store(out))
    assert step >= 2


def test_plan_says_what_would_be_done_and_writes_nothing(
    local_ray: None, models: MicroModels, tmp_path: Path
) -> None:
    samples = write_samples(tmp_path / "samples", model_digest="x")
    shown = plan(settings(samples, tmp_path / "out", models.base, batch=8)).values
    assert (shown["num_samples"], shown["num_steps"]) == (70, NUM_STEPS)
    assert shown["buckets"]["32x32"]["num_rows"] == 42
    assert shown["flops"] > 0
    assert shown["num_trained_parameters"] == shown["num_parameters"]
    adapter = plan(settings(samples, tmp_path / "out", models.base, batch=8, lora_rank=2)).values
    assert 0 < adapter["num_trained_parameters"] < shown["num_parameters"] / 10
    assert adapter["flops"] == pytest.approx(shown["flops"] * 2 / 3)
    assert adapter["state_bytes_per_worker"] < shown["state_bytes_per_worker"] / 3
    assert adapter["fingerprint"] != shown["fingerprint"]
    apart = settings(
        samples, tmp_path / "out", models.base, batch=8, holdout=0.3, holdout_samples=9
    )
    held = plan(apart).values
    assert (held["num_measured"], shown["num_measured"]) == (9, 0)
    assert held["num_samples"] < 70
    assert held["fingerprint"] not in (shown["fingerprint"], adapter["fingerprint"])
    assert not list((tmp_path / "out").iterdir())


def test_what_cannot_work_is_refused_before_any_work(
    local_ray: None, models: MicroModels, tmp_path: Path
) -> None:
    samples = write_samples(tmp_path / "samples", model_digest="x", with_aesthetic=False)
    for more, message in (
        ({"batch": 5}, "2 workers cannot share evenly"),
        ({"remainder": "drop", "batch": 40}, "32x64 has 28 samples"),
        ({"stage": "refiner"}, "is a base"),
        ({"stage": "vae"}, "has latents, expected pictures"),
        ({"texts": "stored"}, "prepare with --text"),
        ({"zero_terminal_snr": True}, "expected v_prediction"),
        ({"any_latents": False}, "its latents were made"),
        ({"resume": str(tmp_path / "nothing")}, "there is no whole checkpoint"),
    ):
        config = settings(samples, tmp_path / "out", models.base, **more)
        with pytest.raises(ConfigError, match=message):
            plan(config)
    refiner = settings(samples, tmp_path / "out", models.refiner, stage="refiner")
    with pytest.raises(ConfigError, match="without an aesthetic score"):
        plan(refiner)
