"""Reports of a training run for W&B and MLflow, through their own libraries.

Each is imported when a run asks for it. Where the reports go is said in the services' own ways:
``WANDB_MODE``, ``WANDB_API_KEY``, ``WANDB_PROJECT``, ``WANDB_ENTITY``; ``MLFLOW_TRACKING_URI``,
``MLFLOW_EXPERIMENT_NAME``; on a cluster in the environment of the workers. Without a network, W&B's
offline files and MLflow's file store lie in the run's output.
"""

import importlib.util
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from cluster.train_validation import Picture
from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.store_errors import redact
from sdxl_core.storage.stores import Store

logger = logging.getLogger(__name__)

ServiceName = Literal["wandb", "mlflow"]
PROJECT = "sdxl-ray"
WANDB_FOLDER, MLFLOW_FOLDER = "wandb", "mlruns"
_PIP_LINES: Mapping[str, str] = {
    "wandb": "pip install 'sdxl-ray[wandb]'",
    "mlflow": "pip install 'sdxl-ray[mlflow]'",
}


class Service(Protocol):
    """What takes reports, beside ``metrics.jsonl``. Nothing that it meets stops the run."""

    run_id: str

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values after ``step``."""

    def add_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Takes pictures (id, rgb_HWC uint8) that the weights after ``step`` make."""

    def flush(self) -> None:
        """Puts files that it keeps into the store.

        Raises:
            StoreError: they cannot be put.
        """

    def close(self) -> None:
        """No more reports from this start of the run."""


def check_services(names: Sequence[ServiceName]) -> tuple[ServiceName, ...]:
    """Returns the names.

    Raises:
        ConfigError: the library of one is not installed; the message has the line that does it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"how.trackers: found {name}, whose library is not installed; "
                f"{_PIP_LINES[name]} on every machine brings it"
            )
    return tuple(names)


def open_service(name: ServiceName, store: Store, run_id: str) -> Service:
    """Begins, or goes on with, the run of a service.

    Args:
        name: of the service.
        store: of the run.
        run_id: what the service called the run when it was begun; "" for a new one.

    Raises:
        ConfigError: the library is not installed, or there is no place to write to.
    """
    check_services([name])
    return (_WandbRun if name == "wandb" else _MlflowRun)(store, run_id)


class _WandbRun:
    """A run of W&B.

    Values are drawn over a metric called ``step``: W&B's own counter only grows, and a run that is
    resumed does the steps after its checkpoint again.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        import wandb

        self._store, self._library = store, wandb
        self._folder = Path(tempfile.mkdtemp(prefix="sdxl-wandb-"))
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=store.url.rstrip("/").rpartition("/")[2],
                id=run_id or uuid.uuid4().hex[:12],
                resume="allow",
                dir=str(self._folder),
                config={"out": store.url},
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"how.trackers: W&B cannot begin a run: {redact(str(error))}. Set WANDB_API_KEY, "
                "or WANDB_MODE=offline to write files"
            ) from None  # the library's own text may have a password in it
        self.run_id = str(self._run.id)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def add_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        shown = {f"validation/{name}": self._library.Image(rgb_HWC) for name, rgb_HWC in pictures}
        self._run.log({**shown, "step": step})

    def flush(self) -> None:
        if self._run.offline:
            _upload_folder(self._store, self._folder / "wandb", WANDB_FOLDER)

    def close(self) -> None:
        self._run.finish()
        self.flush()
        shutil.rmtree(self._folder, ignore_errors=True)


class _MlflowRun:
    """A run of MLflow."""

    def __init__(self, store: Store, run_id: str) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or _local_mlflow_uri(store)
        if uri.startswith("file:") or "://" not in uri:
            # MLflow 3 asks for this word before it writes into a folder.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Its own patience, minutes for each report, would be all workers' waiting time.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        self._make_metric, self._error = Metric, MlflowException
        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
            self.run_id = self._begin(store, run_id)
        except MlflowException as error:
            raise ConfigError(
                f"how.trackers: MLflow cannot begin a run at {redact(f'{uri}: {error}')}. Look at "
                "MLFLOW_TRACKING_URI"
            ) from None  # the library's own text may have a password in it

    def add(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(1e3 * time.time())
        metrics = [
            self._make_metric(name, float(value), now_ms, step) for name, value in values.items()
        ]
        try:
            self._client.log_batch(self.run_id, metrics=metrics)
        except self._error as error:
            logger.warning("a report did not reach MLflow: %s", redact(str(error)))

    def add_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        try:
            for name, rgb_HWC in pictures:
                self._client.log_image(self.run_id, rgb_HWC, f"validation/{step:08d}/{name}.png")
        except self._error as error:
            logger.warning("pictures did not reach MLflow: %s", redact(str(error)))

    def flush(self) -> None:
        """Nothing is kept here."""

    def close(self) -> None:
        try:
            self._client.set_terminated(self.run_id)
        except self._error as error:
            logger.warning("the end of the run did not reach MLflow: %s", redact(str(error)))

    def _begin(self, store: Store, run_id: str) -> str:
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment and experiment.experiment_id
        experiment_id = experiment_id or self._client.create_experiment(name)
        run_name = store.url.rstrip("/").rpartition("/")[2]
        run = self._client.create_run(experiment_id, run_name=run_name, tags={"out": store.url})
        return str(run.info.run_id)


def _local_mlflow_uri(store: Store) -> str:
    """A file store in the run's output, which MLflow can write to on a local disk only."""
    if "://" in store.url and not store.url.startswith("file://"):
        raise ConfigError(
            f"how.trackers: MLflow cannot write its files into {store.url}; set "
            "MLFLOW_TRACKING_URI to a server, a database or a folder"
        )
    return Path(store.url.removeprefix("file://"), MLFLOW_FOLDER).absolute().as_uri()


def _upload_folder(store: Store, folder: Path, prefix: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            store.upload(path, f"{prefix}/{path.relative_to(folder).as_posix()}")
