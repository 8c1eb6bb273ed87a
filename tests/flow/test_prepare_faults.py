"""What breaks while prepare runs: workers, drivers, connections. Nothing is simulated.

Each test ends with the bytes of an undisturbed run, every source row in them once.
"""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.prepare import run
from sdxl_core.storage.stores import open_store
from tests.flow import kit, prepare_kit
from tests.flow.test_faults import in_background, workers_of
from tests.servers import flaky_proxy, moto_s3

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

ROWS = prepare_kit.all_rows(240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepare_kit.write_folder(tmp_path_factory.mktemp("folder") / "pictures", ROWS)


@pytest.fixture(scope="module")
def undisturbed(
    local_ray: None, folder: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Hashes of the files of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(prepare_kit.settings(folder, out))
    return prepare_kit.file_hashes(out)


def assert_whole(out: str | Path, undisturbed: dict[str, str]) -> None:
    prepare_kit.assert_sound(out, len(ROWS))
    assert prepare_kit.file_hashes(out) == undisturbed


@pytest.mark.parametrize(
    ("task", "records"),
    [
        ("stage_slice", "_staging/_parts/*.json"),
        pytest.param("finish_part", "_parts/*.json", marks=pytest.mark.chosen),
    ],
)
def test_fault_worker_killed_in_a_pass_loses_and_doubles_nothing(
    task: str, records: str, folder: str, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out, killed = tmp_path / "out", []

    def kill_once() -> None:
        kit.wait_until(lambda: list(out.glob(records)), "a part", timeout_s=300)
        victims = kit.wait_until(lambda: workers_of(os.getpid(), task), "a worker")
        os.kill(victims[0], signal.SIGKILL)
        killed.append(victims[0])

    with in_background(threading.Thread(target=kill_once)):
        run(prepare_kit.settings(folder, out, how={"tasks": 1}))
    assert killed
    assert_whole(out, undisturbed)


def is_staging(out: Path) -> bool:
    return len(list(out.glob("_staging/_parts/*.json"))) >= 2


def is_laid_out(out: Path) -> bool:
    return (out / "_staging/_layout.parquet").exists()


def is_finishing(out: Path) -> bool:
    return bool(list(out.glob("_parts/*.json")))


@pytest.mark.parametrize("reached", [is_staging, is_laid_out, is_finishing])
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_fault_driver_stopped_in_any_phase_is_resumed_byte_for_byte(
    signal_number: signal.Signals,
    reached: Callable[[Path], bool],
    folder: str,
    undisturbed: dict[str, str],
    tmp_path: Path,
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    command = prepare_kit.command(folder, out, "--how.tasks", "1")
    with kit.running(command, log) as driver:
        kit.wait_until(lambda: reached(out), reached.__name__, timeout_s=300)
        os.kill(driver.pid, signal_number)
        code = driver.wait(timeout=60)
    assert not (out / "_SUMMARY.json").exists()
    if signal_number == signal.SIGTERM:
        assert code == 130
        assert "interrupted; the same command goes on from here" in log.read_text()
    assert kit.run_command(command, log, timeout_s=400) == 3
    summary = json.loads(log.read_text().splitlines()[-1])
    assert summary["num_rows"] == len(ROWS)
    assert_whole(out, undisturbed)


@pytest.mark.s3
def test_fault_s3_that_breaks_off_in_the_middle_of_tars_costs_nothing(
    undisturbed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moto_s3() as server, flaky_proxy(server.port) as proxy:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        store = open_store(server.make_bucket("data"))
        prepare_kit.write_tars(tmp_path / "tars", ROWS, num_tars=4)
        prepare_kit.upload(store, tmp_path / "tars", "tars")
        proxy.cut_after_bytes, proxy.num_cuts_left = 150_000, 12
        env = server.env | {"AWS_ENDPOINT_URL": proxy.endpoint}
        command = prepare_kit.command("s3://data/tars", "s3://data/out", "--how.retries", "6")
        log = tmp_path / "log"
        assert kit.run_command(command, log, env, timeout_s=600) == 3, log.read_text()[-3000:]
        assert proxy.num_cuts_left < 12
        prepare_kit.assert_sound("s3://data/out", len(ROWS))
