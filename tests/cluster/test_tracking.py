"""What a run tells people's tools. W&B and MLflow are real where they are installed."""

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.tracking import METRICS_FILE, SERVICES_FILE, Tracker
from cluster.tracking_services import check_services
from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.stores import open_store

PICTURE = ("cube", np.full((8, 16, 3), 200, np.uint8))


def track(out: Path, steps: range, *, start_step: int = 0, **more: Any) -> None:
    """One start of a run that reports ``loss`` as ``step / 10``, and a picture at its end."""
    tracker = Tracker(open_store(out), start_step=start_step, tensorboard=False, **more)
    for step in steps:
        tracker.add(step, {"loss": step / 10, "loss_by_noise/000-099": 1.0})
    tracker.add_pictures(steps[-1], [PICTURE])
    tracker.close()


def test_a_resumed_run_leaves_out_the_reports_of_steps_that_are_done_again(tmp_path: Path) -> None:
    track(tmp_path, range(1, 6))
    track(tmp_path, range(4, 8), start_step=3)
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(s, s / 10) for s in range(1, 8)]


def test_a_value_that_is_not_finite_is_null_in_json_and_its_line_is_kept(tmp_path: Path) -> None:
    tracker = Tracker(open_store(tmp_path), start_step=0, tensorboard=True)
    tracker.add(1, {"holdout/loss": math.nan, "grad_norm": math.inf, "loss": 0.5})
    tracker.close()
    track(tmp_path, range(2, 3), start_step=1)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = (tmp_path / METRICS_FILE).read_text()
    first, second = (json.loads(line, parse_constant=refuse) for line in text.splitlines())
    assert (first["holdout/loss"], first["grad_norm"], first["loss"]) == (None, None, 0.5)
    assert second["step"] == 2


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_not_installed_is_named_with_the_line_that_brings_it(
    name: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    for call in (
        lambda: check_services([name]),
        lambda: track(tmp_path, range(2), services=[name]),
    ):
        with pytest.raises(ConfigError, match=rf"pip install 'sdxl-ray\[{name}\]'"):
            call()


def test_a_resume_goes_on_without_a_service_that_it_cannot_reach_any_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    (tmp_path / SERVICES_FILE).write_text('{"mlflow": "begun before"}')
    track(tmp_path, range(3, 5), start_step=2, services=["mlflow"])
    assert "goes on without it" in caplog.text
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 2
    assert json.loads((tmp_path / SERVICES_FILE).read_text()) == {"mlflow": "begun before"}


def wandb_history(path: Path) -> Iterator[dict[str, Any]]:
    """The logged rows of an offline file: records of protobuf in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""  # after W&B's own header
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, num_bytes, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + num_bytes]
        place += 7 + num_bytes
        if kind in (1, 4):  # the record, or its last piece
            record = wandb_internal_pb2.Record.FromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                yield {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }


def test_wandb_offline_files_lie_in_the_output_and_a_resume_has_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    track(tmp_path, range(1, 4), services=["wandb"])
    track(tmp_path, range(3, 5), start_step=2, services=["wandb"])
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == 1  # the name is the run's id
    rows = [row for path in files for row in wandb_history(path)]
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == [
        (1, 0.1), (2, 0.2), (3, 0.3), (3, 0.3), (4, 0.4),
    ]  # fmt: skip
    assert sum(any(key.startswith("validation/cube") for key in row) for row in rows) == 2


def test_mlflow_without_a_server_writes_into_the_output_and_a_resume_has_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track(tmp_path, range(1, 4), services=["mlflow"])
    track(tmp_path, range(3, 5), start_step=2, services=["mlflow"])
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("sdxl-ray")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["out"]) == ("FINISHED", str(tmp_path))
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [
        (1, 0.1), (2, 0.2), (3, 0.3), (3, 0.3), (4, 0.4),
    ]  # fmt: skip
    pictures = client.list_artifacts(run.info.run_id, "validation/00000004")
    assert [picture.path for picture in pictures] == ["validation/00000004/cube.png"]
