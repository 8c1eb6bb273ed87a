"""What breaks while a job runs: processes, nodes, disks and connections. Nothing is simulated.

Each test ends in the promised state (every row once, bits as in an undisturbed run, or a stopped
job that the same command takes up again) and looks for the message that a person would act on.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.fsck import FsckConfig
from jobs.fsck import run as fsck
from jobs.generate import run
from sdxl_core.contract.errors import JobError
from sdxl_core.storage.parts import read_part_records
from sdxl_core.storage.stores import open_store
from tests.flow import kit
from tests.micro_models import MicroModels, write_overflowing_model
from tests.servers import flaky_proxy, seaweed_s3

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(900)]

NUM_ROWS = 48


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = kit.plain_rows(NUM_ROWS, steps=12)
    rows[5] |= {"height": 65}
    rows[6] |= {"refiner": True}
    return kit.write_csv(tmp_path_factory.mktemp("prompts") / "p.csv", rows)


@pytest.fixture(scope="module")
def undisturbed(
    local_ray: None, models: MicroModels, prompts: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str | None]:
    """Hashes of the images of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(kit.settings(models, prompts, out))
    return kit.hashes(out)


def assert_whole(out: Path | str, undisturbed: dict[str, str | None]) -> None:
    rows = kit.read_rows(out)
    assert [row["input_row"] for row in rows] == list(range(NUM_ROWS))
    assert {row["id"]: row["sha256"] for row in rows} == undisturbed
    assert [row["id"] for row in rows if row["status"] == "failed"] == ["r5"]
    assert fsck(FsckConfig(out=str(out))).exit_code == 0


@contextlib.contextmanager
def in_background(target: "threading.Thread") -> Iterator[None]:
    target.start()
    try:
        yield
    finally:
        target.join()


def workers_of(pid: int, pool: str) -> list[int]:
    return [
        child
        for child, title in kit.descendants(pid).items()
        if title.startswith("ray::") and pool in title and "__init__" not in title
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "pool",
    [
        "EncodePrompts",
        pytest.param("Denoise", marks=pytest.mark.chosen),
        "WriteImages",
        "_Hub",
    ],
)
def test_fault_worker_killed_mid_run_loses_and_doubles_nothing(
    pool: str,
    models: MicroModels,
    prompts: str,
    undisturbed: dict[str, str | None],
    tmp_path: Path,
) -> None:
    out, killed = tmp_path / "out", []

    def kill_once() -> None:
        kit.wait_until(lambda: kit.num_parts_done(out) >= 2, "two parts", timeout_s=300)
        for pid in workers_of(os.getpid(), pool)[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with in_background(threading.Thread(target=kill_once)):
        summary = run(kit.settings(models, prompts, out))
    assert killed
    assert summary.num_parts_made_now == summary.num_parts
    assert_whole(out, undisturbed)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_fault_part_that_kills_its_worker_too_often_fails_and_can_be_retried(
    models: MicroModels, tmp_path: Path
) -> None:
    # Rows of so many steps that a worker is in the middle of a part a second after it began.
    prompts = kit.write_csv(tmp_path / "long.csv", kit.plain_rows(16, steps=400))
    out, stop = tmp_path / "out", threading.Event()

    def kill_again_and_again() -> None:
        first_seen_s: dict[int, float] = {}
        while not stop.is_set() and kit.num_parts_done(out) < 3:
            for pid in workers_of(os.getpid(), "Denoise"):
                if time.monotonic() - first_seen_s.setdefault(pid, time.monotonic()) > 1.0:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    how = {"max_attempts": 1, "max_failed_share": 1.0}
    summary = run(kit.settings(models, prompts, out, how=how))
    stop.set()
    killer.join()
    before = {row["id"]: row for row in kit.read_rows(out)}
    failed = [row for row in before.values() if row["status"] == "failed"]
    assert failed
    assert summary.num_by_reason == {"internal_error": len(failed)}
    assert "the worker died 1 times on part" in failed[0]["detail"]
    assert "--retry-failed" in failed[0]["detail"]
    again = run(kit.settings(models, prompts, out, how=how, retry_failed=True))
    assert 0 < again.num_parts_made_now < again.num_parts
    after = kit.read_rows(out)
    assert [row["input_row"] for row in after] == list(range(16))
    assert all(row["status"] == "ok" for row in after)
    kept = [row for row in after if before[row["id"]]["status"] == "ok"]
    assert all(row["sha256"] == before[row["id"]]["sha256"] for row in kept)
    assert fsck(FsckConfig(out=str(out))).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "signal_number",
    [
        pytest.param(signal.SIGKILL, marks=pytest.mark.chosen),
        signal.SIGTERM,
        signal.SIGINT,
    ],
)
def test_fault_driver_stopped_by_a_signal_is_resumed_bit_for_bit(
    signal_number: signal.Signals,
    models: MicroModels,
    prompts: str,
    undisturbed: dict[str, str | None],
    tmp_path: Path,
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    command = kit.command(models, prompts, out)
    with kit.running(command, log) as driver:
        kit.wait_until(lambda: kit.num_parts_done(out) >= 2, "two parts", timeout_s=300)
        # Ray's two agents go on trying to report the lost node for a minute or more; they hold
        # nothing of the job.
        workers = [
            pid for pid, title in kit.descendants(driver.pid).items() if "Agent" not in title
        ]
        os.kill(driver.pid, signal_number)
        code = driver.wait(timeout=60)
        kit.wait_until(
            lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers),
            "the driver's Ray is gone",
        )
    if signal_number != signal.SIGKILL:
        assert code == 130
        assert "interrupted; the same command goes on from here" in log.read_text()
    num_done = kit.num_parts_done(out)
    assert 2 <= num_done < NUM_ROWS // 4
    assert kit.run_command(command, log, timeout_s=400) == 3
    summary = json.loads(log.read_text().splitlines()[-1])
    assert summary["num_parts_made_now"] == NUM_ROWS // 4 - num_done
    assert_whole(out, undisturbed)


NODES = """
import sys, threading, time
import ray
from ray.cluster_utils import Cluster
from jobs.__main__ import main
from tests.flow import kit

out = sys.argv[1]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)

def lose_a_node():
    kit.wait_until(lambda: kit.num_parts_done(out) >= 2, "two parts", timeout_s=300)
    cluster.remove_node(nodes[0], allow_graceful=False)
    print("a node is gone", flush=True)

thread = threading.Thread(target=lose_a_node)
thread.start()
code = main(sys.argv[2:])
thread.join()
ray.shutdown()
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.multinode
def test_fault_node_lost_mid_run_loses_and_doubles_nothing(
    models: MicroModels, prompts: str, undisturbed: dict[str, str | None], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    command = kit.command(models, prompts, out, "--how.denoisers", "2")
    script = [command[0], "-c", NODES, str(out), *command[3:]]
    assert kit.run_command(script, log, timeout_s=600) == 3, log.read_text()[-3000:]
    assert "a node is gone" in log.read_text()
    assert_whole(out, undisturbed)


@pytest.mark.slow
def test_fault_file_that_the_kernel_refuses_to_write_stops_the_job(
    models: MicroModels,
    prompts: str,
    undisturbed: dict[str, str | None],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"

    def limit_writers() -> None:
        kit.wait_until(lambda: kit.num_parts_done(out) >= 2, "two parts", timeout_s=300)
        for pid in workers_of(os.getpid(), "WriteImages"):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, 100))

    with (
        in_background(threading.Thread(target=limit_writers)),
        pytest.raises(JobError, match=r"write, part \d+: cannot write .*(ulimit -f)") as stop,
    ):
        run(kit.settings(models, prompts, out))
    assert "the same command goes on from there" in str(stop.value)
    assert not (out / "_SUMMARY.json").exists()
    done = {record.part for record in read_part_records(open_store(out))}
    assert 2 <= len(done) < NUM_ROWS // 4
    run(kit.settings(models, prompts, out))
    assert_whole(out, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for half of the output."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk needs the right to mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_fault_full_disk_stops_the_job_and_space_lets_it_go_on(
    models: MicroModels,
    prompts: str,
    undisturbed: dict[str, str | None],
    small_disk: Path,
) -> None:
    out = small_disk / "out"
    with pytest.raises(JobError, match=r"disk full; free space or choose another output directory"):
        run(kit.settings(models, prompts, out))
    done = kit.num_parts_done(out)
    assert 0 < done < NUM_ROWS // 4
    assert not fsck(FsckConfig(out=str(out))).check.problems
    subprocess.run(["mount", "-o", "remount,size=50M", str(small_disk)], check=True)
    assert run(kit.settings(models, prompts, out)).num_parts_made_now == NUM_ROWS // 4 - done
    assert_whole(out, undisturbed)


@pytest.mark.slow
@pytest.mark.s3
def test_fault_s3_connection_lost_for_a_while_costs_nothing_and_for_good_stops_the_job(
    models: MicroModels,
    prompts: str,
    undisturbed: dict[str, str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with seaweed_s3() as server, flaky_proxy(server.port) as proxy:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        url = server.make_bucket("job")
        store = open_store(url)
        store.upload(Path(prompts), "in/p.csv")
        for folder in (models.base, models.refiner):
            for file in Path(folder).rglob("*"):
                if file.is_file():
                    store.upload(file, f"{Path(folder).name}/{file.relative_to(folder)}")
        remote = MicroModels(base=f"{url}/base", refiner=f"{url}/refiner")
        out = f"{url}/out"
        env = server.env | {"AWS_ENDPOINT_URL": proxy.endpoint}
        command = kit.command(remote, f"{url}/in/p.csv", out, "--how.timeout-s", "3")

        def num_done() -> int:
            return len(open_store(out).list("_parts"))

        log = tmp_path / "log"
        with kit.running(command, log, env) as driver:
            kit.wait_until(lambda: num_done() >= 2, "two parts", timeout_s=400)
            proxy.mode = "refuse"
            proxy.cut()
            code = driver.wait(timeout=200)
        text = log.read_text()
        assert code == 1, text[-3000:]
        assert "sdxl: JobError:" in text
        assert "s3://job/" in text
        assert "the same command goes on from there" in text
        assert server.env["AWS_SECRET_ACCESS_KEY"] not in text
        assert num_done() < NUM_ROWS // 4

        proxy.mode = "ok"
        before = num_done()
        with kit.running([*command, "--how.retries", "6"], log, env) as driver:
            kit.wait_until(lambda: num_done() > before, "one more part", timeout_s=400)
            proxy.mode = "refuse"
            proxy.cut()
            time.sleep(1.5)
            proxy.mode = "ok"
            assert driver.wait(timeout=400) == 3, log.read_text()[-3000:]
        assert_whole(out, undisturbed)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_fault_model_that_overflows_stops_the_job_early_with_the_reason(
    models: MicroModels, tmp_path: Path
) -> None:
    prompts = kit.write_csv(tmp_path / "p.csv", kit.plain_rows(400, steps=1))
    model = write_overflowing_model(tmp_path / "model")
    config = kit.settings(models, prompts, tmp_path / "out", model=model, refiner="none")
    with pytest.raises(JobError, match=r"rows have failed \(100\.0%\).*non_finite_image") as stop:
        run(config)
    assert "--retry-failed" in str(stop.value)
    assert 25 <= kit.num_parts_done(config.out) < 100


@pytest.mark.slow
def test_fault_table_that_changes_during_the_run_stops_the_job(
    models: MicroModels, prompts: str, tmp_path: Path, local_ray: None
) -> None:
    copy, out = tmp_path / "p.csv", tmp_path / "out"
    shutil.copy(prompts, copy)

    def change() -> None:
        kit.wait_until(lambda: (out / "_plan.json").exists(), "the plan", timeout_s=300)
        copy.write_text(copy.read_text() + "late,a late row,12,,\n")

    with (
        in_background(threading.Thread(target=change)),
        pytest.raises(JobError, match=r"read, part \d+: SchemaError: .*p\.csv"),
    ):
        run(kit.settings(models, str(copy), out))
