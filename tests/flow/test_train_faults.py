"""What breaks while a training runs: workers, the command, a machine. Nothing is simulated.

Each test ends with the state of an undisturbed run, which is made without Ray and without Ray's
way of delivering samples: the same parts of the product in a plain group of processes.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.train_config import TrainConfig
from sdxl_core.storage.stores import open_store
from sdxl_core.training.checkpoint_store import committed_steps, read_record
from tests.cluster.train_samples import write_samples
from tests.flow import kit
from tests.flow.train_kit import (
    command,
    newest,
    newest_step,
    reports,
    settings,
    state_hashes,
    undisturbed,
)
from tests.micro_models import MicroModels
from tests.servers import seaweed_s3

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1500)]


def running_workers(process: subprocess.Popen[bytes]) -> list[int]:
    titles = kit.descendants(process.pid)
    return sorted(p for p, title in titles.items() if "RayTrainWorker" in title and is_running(p))


def kill_a_worker(process: subprocess.Popen[bytes], rng: random.Random) -> None:
    kit.wait_until(lambda: running_workers(process), "a worker", timeout_s=100)
    pid = rng.choice(running_workers(process))
    os.kill(pid, signal.SIGKILL)
    kit.wait_until(lambda: not is_running(pid), "it is gone")


def kill_the_command(process: subprocess.Popen[bytes]) -> None:
    """The command alone: that its workers end after it is the product's business."""
    workers, others = running_workers(process), kit.descendants(process.pid)
    assert workers
    process.kill()
    process.wait(timeout=30)
    try:
        kit.wait_until(lambda: not any(map(is_running, workers)), "its workers are gone")
    finally:
        for pid in others:  # Ray's own agents live on for a minute
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Is there a process that has not ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_step(process: subprocess.Popen[bytes], out: str | Path, step: int, log: Path) -> None:
    """Waits until a checkpoint of a step after ``step`` is committed."""

    def is_there() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        return newest_step(out) > step

    kit.wait_until(is_there, f"a step after {step}", timeout_s=400)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_samples(tmp_path_factory.mktemp("s") / "s", model_digest="x")


NUM_KILLS = 10


def kill_again_and_again(arguments: list[str], out: Path, log: Path, rng: random.Random) -> None:
    """Starts the command until it was killed ten times, itself or a worker; the last time itself.

    Each time it has come at least one checkpoint further than the time before.
    """
    kinds = ["command"] * 2 + ["worker"] * (NUM_KILLS - 3)
    rng.shuffle(kinds)
    kinds, step = ["command", *kinds], 0
    while kinds:
        with kit.running(arguments, log) as process:
            is_alive = True
            while is_alive:
                wait_for_step(process, out, step, log)
                time.sleep(rng.uniform(0, 0.5))
                is_alive = kinds.pop() == "worker"
                if is_alive:
                    kill_a_worker(process, rng)
                else:
                    kill_the_command(process)
                step = newest_step(out)


def test_fault_ten_kills_of_workers_and_command_leave_the_undisturbed_bits(
    samples: str, models: MicroModels, tmp_path: Path
) -> None:
    out, log, recipe = tmp_path / "out", tmp_path / "log", tmp_path / "recipe.toml"
    # One worker: two cost twice the time to start, and are killed in the tests below.
    endless = settings(samples, out, models.base, steps=1_000_000, how={"workers": 1})
    kill_again_and_again(command(endless, recipe), out, log, random.Random(4))
    config = dataclasses.replace(endless, steps=newest_step(out) + 2)
    code = kit.run_command(command(config, recipe), log, timeout_s=400)
    assert code == 0, log.read_text(errors="replace")[-3000:]
    straight = undisturbed(config, tmp_path / "straight")
    assert newest(out).step == config.steps > NUM_KILLS
    assert state_hashes(out) == state_hashes(straight)
    ours, theirs = reports(out), reports(straight)
    assert [line["step"] for line in ours] == list(range(1, config.steps + 1))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]


NODES = """
import os, signal, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from jobs.__main__ import main
from tests.flow import kit
from tests.flow.train_kit import newest, newest_step

how, out, small = sys.argv[1], sys.argv[2], {"object_store_memory": 80 << 20}
head = {"num_cpus": 0, "include_dashboard": False, **small}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(1 if how == "more" else 2)]
ray.init(address=cluster.address, log_to_driver=False)
# The machine of the command is another matter: the command dies with it.
here = ray.get_runtime_context().get_node_id()
others = [node for node in nodes if node.node_id != here]
has_ended = threading.Event()

def gain_a_node():
    kit.wait_until(lambda: newest_step(out), "a checkpoint", timeout_s=400)
    ray._private.utils.set_sigterm_handler = lambda *_: None  # only the main thread may
    cluster.add_node(num_cpus=1, **small)
    print("a node has come", flush=True)
    kit.wait_until(lambda: newest(out).world_size == 2, "a checkpoint of two", timeout_s=400)
    os.kill(os.getpid(), signal.SIGINT)
    has_ended.wait()  # a machine ends with the thread that started it

def tell_that_it_goes():
    metrics = Path(out, "metrics.jsonl")
    kit.wait_until(lambda: metrics.exists() and metrics.stat().st_size, "a report", timeout_s=400)
    preemption = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = 1000 * (time.time() + 300)
    gcs = ray._raylet.GcsClient(address=cluster.address)
    accepted, why_not = gcs.drain_node(others[0].node_id, preemption, "", int(deadline_ms))
    assert accepted, why_not

def lose_a_node():
    if how == "told":
        tell_that_it_goes()
    kit.wait_until(lambda: newest_step(out), "a checkpoint", timeout_s=400)
    cluster.remove_node(others[0], allow_graceful=False)
    print("a node is gone", flush=True)

thread = threading.Thread(target=gain_a_node if how == "more" else lose_a_node)
thread.start()
code = main(sys.argv[3:])
has_ended.set()
thread.join()
ray.shutdown()
cluster.shutdown()
sys.exit(code)
"""


def run_on_nodes(how: str, config: TrainConfig, folder: Path) -> None:
    """Runs the command on two machines, one of which goes: "told" or "untold"; or on one, beside
    which there is "more" after a while, and stops it when that is used."""
    log, is_lost = folder / "log", how != "more"
    first, *_, recipe = command(config, folder / "recipe.toml")
    job = ["train", config.samples, config.out, "--recipe", recipe]
    # Ray Train waits so long for a machine that it does not know to be gone yet.
    env = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5"}
    code = kit.run_command([first, "-c", NODES, how, config.out, *job], log, env, timeout_s=800)
    assert code == (0 if is_lost else 130), log.read_text(errors="replace")[-3000:]
    said = "a node is gone" if is_lost else "a node has come"
    assert said in log.read_text(errors="replace")


def assert_same_data(out: Path, straight: Path, num_steps: int) -> None:
    """The loss of other samples, noise or levels would be another one; that of other workers is
    rounded otherwise."""
    ours, theirs = reports(out), reports(straight)
    assert [line["step"] for line in ours] == list(range(1, num_steps + 1))
    for mine, other in zip(ours, theirs, strict=True):
        assert {n for n in mine if n.startswith("loss_by")} == {
            n for n in other if n.startswith("loss_by")
        }
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3), mine["step"]


@pytest.mark.multinode
def test_fault_lost_node_leaves_a_smaller_group_that_sees_the_rest_of_the_same_data(
    samples: str, models: MicroModels, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    how = {"min_workers": 1, "keep_checkpoints": 100}
    config = settings(samples, out, models.base, steps=30, how=how)
    run_on_nodes("untold", config, tmp_path)
    store = open_store(out)
    sizes = [read_record(store, step).world_size for step in committed_steps(store)]
    assert (sizes[0], sizes[-1]) == (2, 1)
    assert sizes == sorted(sizes, reverse=True)
    assert newest(out).num_samples == config.steps * config.batch
    assert_same_data(out, undisturbed(config, tmp_path / "straight"), config.steps)


@pytest.mark.multinode
def test_fault_machine_that_comes_later_makes_the_group_larger_on_the_same_data(
    samples: str, models: MicroModels, tmp_path: Path
) -> None:
    """Ray Train looks every minute: steps are large, and learn little, so that few are enough."""
    out = tmp_path / "out"
    how = {"min_workers": 1, "keep_checkpoints": 1000, "checkpoint_every": 20}
    endless = settings(
        samples, out, models.base, steps=1_000_000, batch=32, learning_rate=1e-5, how=how
    )
    run_on_nodes("more", endless, tmp_path)
    store = open_store(out)
    sizes = [read_record(store, step).world_size for step in committed_steps(store)]
    assert (sizes[0], sizes[-1]) == (1, 2)
    assert sizes == sorted(sizes)
    config = dataclasses.replace(endless, steps=newest(out).step)
    assert newest(out).num_samples == config.steps * config.batch
    assert_same_data(out, undisturbed(config, tmp_path / "straight"), config.steps)


@pytest.mark.multinode
def test_fault_node_that_is_told_to_go_leaves_a_checkpoint_of_that_moment(
    samples: str, models: MicroModels, tmp_path: Path
) -> None:
    out, steps = tmp_path / "out", 600
    how = {"min_workers": 1, "keep_checkpoints": 100, "checkpoint_every": 10 * steps}
    config = settings(samples, out, models.base, steps=steps, how=how)
    run_on_nodes("told", config, tmp_path)
    store = open_store(out)
    first, *_, last = committed_steps(store)
    assert 0 < first < last == steps
    assert (read_record(store, first).world_size, newest(out).world_size) == (2, 1)
    assert newest(out).num_samples == steps * config.batch
    assert [line["step"] for line in reports(out)] == list(range(1, steps + 1))


@contextlib.contextmanager
def samples_on_s3(samples: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server with the samples below ``samples``."""
    with seaweed_s3() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        url = server.make_bucket("training")
        store = open_store(url)
        for file in sorted(Path(samples).rglob("*")):
            if file.is_file():
                store.upload(file, f"samples/{file.relative_to(samples)}")
        yield url


@pytest.mark.s3
def test_fault_job_with_samples_and_output_on_s3_is_killed_and_goes_on_bit_for_bit(
    samples: str, models: MicroModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with samples_on_s3(samples, monkeypatch) as url:
        out, log = f"{url}/out", tmp_path / "log"
        config = settings(f"{url}/samples", out, models.base, steps=24, export="ema")
        arguments = command(config, tmp_path / "recipe.toml")
        with kit.running(arguments, log, os.environ) as process:
            wait_for_step(process, out, 0, log)
            kill_the_command(process)
        assert 0 < newest_step(out) < config.steps
        code = kit.run_command(arguments, log, os.environ, timeout_s=600)
        text = log.read_text(errors="replace")
        assert code == 0, text[-3000:]
        summary = json.loads(text.splitlines()[-1])
        assert 0 < summary["num_steps_now"] < summary["step"] == config.steps
        assert open_store(out).exists("model/model_index.json")
        on_disk = dataclasses.replace(config, samples=samples, out=str(tmp_path / "other"))
        straight = undisturbed(on_disk, tmp_path / "straight")
        assert state_hashes(out) == state_hashes(straight)
