"""Reports of a training run, for people and their tools: ``metrics.jsonl``, TensorBoard, and by
choice W&B and MLflow."""

import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.tracking_services import Service, ServiceName, open_service
from cluster.train_validation import Picture
from sdxl_core.contract.errors import ConfigError, StoreError
from sdxl_core.storage.stores import Store

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
# How W&B and MLflow call this run: a resume goes on with theirs.
SERVICES_FILE = "tracker-runs.json"


class Tracker:
    """Writes the reports of one run; a run that is resumed goes on with the lines before it.

    Args:
        store: of the run.
        start_step: where this start of the run begins; later lines of the start before are of steps
            that are done again, and are left out.
        tensorboard: write TensorBoard's files as well.
        services: tell these as well.
        flush_every_s: pause between two uploads.

    Raises:
        ConfigError: a service's library is not installed, or it cannot begin a run. One that cannot
            go on with a run is left out of this start.
    """

    def __init__(
        self,
        store: Store,
        *,
        start_step: int,
        tensorboard: bool,
        services: Sequence[ServiceName] = (),
        flush_every_s: float = 30.0,
    ) -> None:
        self._store = store
        self._flush_every_s = flush_every_s
        self._flushed = time.monotonic()
        self._lines = [line for line in _lines(store) if json.loads(line)["step"] <= start_step]
        self._folder = Path(tempfile.mkdtemp(prefix="sdxl-tensorboard-")) if tensorboard else None
        self._writer = _writer(self._folder, start_step) if self._folder is not None else None
        self._services = _open_services(store, services)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Takes the values after ``step``; puts the files if they were not put for a while."""
        # JSON knows no NaN: a value that is not finite, such as the norm of a step that was skipped
        # or a loss of held-out samples, is null.
        told = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"step": step, "time": time.time(), **told}
        self._lines.append(json.dumps(line, allow_nan=False).encode())
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        for service in self._services:
            service.add(step, values)
        if time.monotonic() - self._flushed > self._flush_every_s:
            self.flush()

    def add_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Takes pictures (id, rgb_HWC uint8) that the weights after ``step`` make."""
        if self._writer is not None:
            for name, rgb_HWC in pictures:
                self._writer.add_image(f"validation/{name}", rgb_HWC, step, dataformats="HWC")
        for service in self._services:
            service.add_pictures(step, pictures)

    def flush(self) -> None:
        """Puts the files. They are a report: that they cannot be put does not stop the run."""
        self._flushed = time.monotonic()
        try:
            self._store.write_bytes(METRICS_FILE, b"".join(line + b"\n" for line in self._lines))
            if self._writer is not None and self._folder is not None:
                self._writer.flush()
                for path in self._folder.iterdir():
                    self._store.upload(path, f"{TENSORBOARD_FOLDER}/{path.name}")
            for service in self._services:
                service.flush()
        except StoreError as error:
            logger.warning("reports could not be written: %s", error)

    def close(self) -> None:
        """Puts the files for the last time."""
        self.flush()
        for service in self._services:
            try:
                service.close()
            except StoreError as error:
                logger.warning("reports could not be written: %s", error)
        if self._writer is not None and self._folder is not None:
            self._writer.close()
            shutil.rmtree(self._folder)


def _lines(store: Store) -> list[bytes]:
    return store.read_bytes(METRICS_FILE).splitlines() if store.exists(METRICS_FILE) else []


def _open_services(store: Store, names: Sequence[ServiceName]) -> list[Service]:
    known: dict[str, str] = {}
    if store.exists(SERVICES_FILE):
        known = json.loads(store.read_bytes(SERVICES_FILE))
    services: dict[str, Service] = {}
    for name in names:
        try:
            services[name] = open_service(name, store, known.get(name, ""))
        except ConfigError as error:
            if name not in known:
                raise
            # The workers start again, after the loss of one too: no reason to end a run that goes.
            logger.warning("%s. This start of the run goes on without it", error)
    ids = known | {name: service.run_id for name, service in services.items()}
    if ids != known:
        store.write_bytes(SERVICES_FILE, json.dumps(ids).encode())
    return list(services.values())


def _writer(folder: Path, start_step: int) -> Any:
    """TensorBoard's writer, of the library that Ray Train brings along."""
    from tensorboardX import SummaryWriter

    # TensorBoard forgets what an earlier file says of steps from `purge_step` on.
    return SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)
