"""The last pool: latents to pictures, pictures to files, files to a committed part."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from cluster import failures
from cluster.loading import load_models
from cluster.messages import PartWork, RowWork, from_message
from cluster.regeneration import image_parameters
from cluster.reports import fatal_report
from cluster.work import GenerateWork
from cluster.worker import Worker
from cluster.writing import commit_images, part_report
from sdxl_core.diffusion.decoding import decode_error, decode_row
from sdxl_core.storage.image_files import encode_image
from sdxl_core.storage.stores import open_store


class WriteImages(Worker):
    """Decodes latents, encodes images on other threads, writes the part and commits it."""

    def __init__(self, work: GenerateWork, hub: Any) -> None:
        super().__init__(work, hub, "write")
        models = load_models(work, components=("vae",), stages=("base",))
        self._model = models["base"]
        self._store = open_store(work.out, retries=work.retries, timeout_s=work.timeout_s)
        self._codec = ThreadPoolExecutor(2, thread_name_prefix="codec")
        self._lock = threading.Lock()

    def __call__(self, message: pa.Table) -> pa.Table:
        """A message becomes one row of counts for the driver; the part is committed by then."""
        work = from_message(message)
        if work.fatal:
            return fatal_report(work.part, work.fatal)
        attempt = self._begin(work.part)
        started = time.perf_counter()
        images: dict[int, bytes] = {}

        def decode(_work: PartWork, rows: list[RowWork]) -> None:
            encoding = {row.input_row: self._decode(row) for row in rows}
            images.update((row, future.result()) for row, future in encoding.items() if future)

        failures.guard_rows(
            work,
            decode,
            stage=self._stage,
            attempt=attempt,
            max_attempts=self._work.max_attempts,
        )
        decoded = time.perf_counter()
        records: list[Any] = []
        failures.guard_commit(
            work,
            lambda: records.append(commit_images(self._work, self._store, work, images)),
            stage=self._stage,
        )
        if work.fatal:
            return fatal_report(work.part, work.fatal)
        done = time.perf_counter()
        num_rows = len(work.rows)
        self._end(
            work.part, ("decode", num_rows, decoded - started), ("write", num_rows, done - decoded)
        )
        return part_report(records[-1])

    def _decode(self, row: RowWork) -> Future[bytes] | None:
        """Decodes one row; its image is encoded on another thread. None if there is no image."""
        assert row.latents is not None
        if self._work.output_format == "dry":
            return None
        started = time.perf_counter()
        with self._lock:
            rgb_HWC, finite = decode_row(self._model, row.latents, device=self._work.device)
        row.seconds["decode"] = time.perf_counter() - started
        if not finite:
            row.error = decode_error(self._model)
            return None
        return self._codec.submit(
            encode_image,
            rgb_HWC,
            image_format=self._work.image_format,
            parameters=image_parameters(row.request, self._work.model_digest),
        )
