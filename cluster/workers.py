"""The Ray actors of generate: encode prompts, denoise, decode and write. One part at a time each.

They are thin. Each loads the networks of its stage once, turns a message into ``PartWork``, calls
the core and packs the result. Several parts are in flight in one actor (Ray calls it from several
threads), so the slots of the engine stay full while a part drains.
"""

import concurrent.futures
import logging
import os
import threading
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from cluster import failures
from cluster.loading import load_models
from cluster.messages import (
    PartWork,
    RowWork,
    StageName,
    from_message,
    message_part,
    to_message,
)
from cluster.telemetry import Event
from cluster.work import DTYPES, GenerateWork
from cluster.writing import commit_images, failed_report, part_report
from sdxl_core.contract.errors import RowError
from sdxl_core.contract.part_requests import resolve_part
from sdxl_core.contract.reasons import Reason
from sdxl_core.diffusion.conditioning import condition
from sdxl_core.diffusion.engine import Engine, OutOfMemoryRow, unet_network
from sdxl_core.diffusion.refinement import base_task, refiner_task
from sdxl_core.diffusion.service import EngineService, Outcome
from sdxl_core.diffusion.tasks import Conditioning, DenoiseTask
from sdxl_core.diffusion.text_stage import TextStage
from sdxl_core.nets.autoencoder import decode_latents
from sdxl_core.nets.model import SdxlModel
from sdxl_core.storage.image_files import encode_image
from sdxl_core.storage.stores import open_store
from sdxl_core.storage.tables import read_part

logger = logging.getLogger(__name__)

_SPAN_OF: dict[StageName, str] = {"base": "denoise", "refiner": "refine"}


class _Worker:
    """What all stages share: a quiet process, pinned threads, and the line to the hub."""

    def __init__(self, work: GenerateWork, hub: Any, stage: str) -> None:
        torch.set_num_threads(work.num_threads)
        self._work = work
        self._hub = hub
        self._stage = stage
        self._name = f"{stage}-{ray.get_runtime_context().get_node_id()[:6]}-{os.getpid()}"

    def _begin(self, part: int) -> int:
        return int(ray.get(self._hub.begin.remote(self._stage, part)))

    def _end(self, part: int, *spans: tuple[str, int, float], detail: str = "") -> None:
        """Reports spans (name, rows, seconds) and that the stage got through the part."""
        events = [
            Event(
                span=span,
                part=part,
                num_rows=num_rows,
                seconds=seconds,
                worker=self._name,
                detail=detail,
            )
            for span, num_rows, seconds in spans
        ]
        self._hub.record.remote(events)
        self._hub.end.remote(self._stage, part)


class EncodePrompts(_Worker):
    """Reads a part, resolves its rows and encodes their texts."""

    def __init__(self, work: GenerateWork, hub: Any) -> None:
        super().__init__(work, hub, "encode")
        models = load_models(work, components=("text_encoder", "text_encoder_2"))
        self._texts = TextStage(models)
        self._lock = threading.Lock()

    def __call__(self, message: pa.Table) -> pa.Table:
        """A message that holds a part's number becomes one that holds its rows and texts."""
        part = message_part(message)
        attempt = self._begin(part)
        started = time.perf_counter()
        work = failures.guard_read(part, lambda: self._read(part))
        if isinstance(work, str):
            return to_message(PartWork(part=part, table=pa.table({}), rows=[], fatal=work))
        read = time.perf_counter()
        with self._lock:
            failures.guard_rows(
                work,
                self._encode,
                stage=self._stage,
                attempt=attempt,
                max_attempts=self._work.max_attempts,
            )
        done = time.perf_counter()
        for row in work.rows:
            row.seconds["encode"] = (done - read) / len(work.rows)
        num_rows = len(work.rows)
        self._end(part, ("read", num_rows, read - started), ("encode", num_rows, done - read))
        return to_message(work)

    def _read(self, part: int) -> PartWork:
        place = self._work.parts.part(part)
        table = read_part(place)
        resolved = resolve_part(
            table,
            first_row=place.global_first_row,
            defaults=self._work.defaults,
            run_seed=self._work.run_seed,
            duplicates=self._work.duplicates.get(part),
        )
        rows = [RowWork(input_row=row, request=request) for row, request in resolved.requests]
        return PartWork(part=part, table=table, rows=rows)

    def _encode(self, work: PartWork, rows: list[RowWork]) -> None:
        places = {}
        for row, texts in zip(rows, self._texts.encode([row.request for row in rows]), strict=True):
            for stage, (positive, negative) in texts.items():
                for states in (positive, negative):
                    if states is not None and id(states) not in places:
                        places[id(states)] = len(work.texts)
                        work.texts.append(states)
                row.texts[stage] = (
                    places[id(positive)],
                    None if negative is None else places[id(negative)],
                )
            used = [states for pair in texts.values() for states in pair if states is not None]
            row.num_tokens_cut = max(states.num_tokens_cut for states in used)


class Denoise(_Worker):
    """Runs the rows of a part through the base, the refiner, or both on one device."""

    def __init__(self, work: GenerateWork, hub: Any, stages: tuple[StageName, ...]) -> None:
        super().__init__(work, hub, "+".join(stages))
        self._stages = stages
        self._models = load_models(work, components=("unet",), stages=stages)
        self._start_service()

    def _start_service(self) -> None:
        self._service = EngineService(
            {
                stage: Engine(
                    unet_network(self._models[stage].unet),
                    slots_for=self._work.slots[stage],
                    device=self._work.device,
                    dtype=DTYPES[self._work.dtype],
                    numerics=self._work.numerics,
                )
                for stage in self._stages
            }
        )

    def __call__(self, message: pa.Table) -> pa.Table:
        """Latents appear in the message, or move on to the refiner's."""
        work = from_message(message)
        if work.fatal:
            return message
        attempt = self._begin(work.part)
        started = time.perf_counter()
        failures.guard_rows(
            work,
            self._denoise,
            stage=self._stage,
            attempt=attempt,
            max_attempts=self._work.max_attempts,
        )
        seconds = time.perf_counter() - started
        counts = {
            "base": len(work.rows),
            "refiner": sum(row.request.refiner for row in work.rows),
        }
        spans = [(_SPAN_OF[stage], counts[stage], seconds) for stage in self._stages]
        shrinks = [
            f"{stage}: {shrink}"
            for stage, engine in self._service.engines.items()
            for shrink in engine.shrinks
        ]
        self._end(work.part, *spans, detail="; ".join(shrinks))
        return to_message(work)

    def _denoise(self, work: PartWork, rows: list[RowWork]) -> None:
        if self._service.failed:
            # A network call that failed took the loop with it; the rows get a new one.
            self._start_service()
        waiting: dict[concurrent.futures.Future[Outcome], tuple[RowWork, StageName]] = {}
        for row in rows:
            self._submit(work, row, self._stages[0], waiting)
        while waiting:
            done, _ = concurrent.futures.wait(
                waiting, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                row, stage = waiting.pop(future)
                self._take(row, stage, future.result())
                if stage == "base" and "refiner" in self._stages:
                    self._submit(work, row, "refiner", waiting)

    def _submit(
        self,
        work: PartWork,
        row: RowWork,
        stage: StageName,
        waiting: dict[concurrent.futures.Future[Outcome], tuple[RowWork, StageName]],
    ) -> None:
        if row.error is not None or (stage == "refiner" and not row.request.refiner):
            return
        try:
            task = self._task(work, row, stage)
        except RowError as error:
            row.error = error
            return
        waiting[self._service.submit(stage, task)] = (row, stage)

    def _task(self, work: PartWork, row: RowWork, stage: StageName) -> DenoiseTask:
        model = self._models[stage]
        positive, negative = self._conditioning(work, row, stage, model)
        if stage == "base":
            return base_task(row.request, model, positive, negative)
        assert row.latents is not None
        return refiner_task(
            row.request,
            model,
            positive,
            negative,
            latents_CHW=row.latents,
            num_draws_done=row.num_draws,
        )

    def _conditioning(
        self, work: PartWork, row: RowWork, stage: StageName, model: SdxlModel
    ) -> tuple[Conditioning, Conditioning | None]:
        positive, negative = row.texts[stage]
        return condition(
            row.request,
            model,
            work.texts[positive],
            None if negative is None else work.texts[negative],
        )

    def _take(self, row: RowWork, stage: StageName, outcome: Outcome) -> None:
        if isinstance(outcome, OutOfMemoryRow):
            row.error = RowError(Reason.OUT_OF_MEMORY, outcome.detail)
            return
        row.latents = outcome.latents_CHW
        row.num_draws = outcome.num_draws_done
        row.num_slots = outcome.num_slots
        row.seconds[_SPAN_OF[stage]] = outcome.seconds
        if not outcome.is_finite:
            row.error = RowError(
                Reason.NON_FINITE_IMAGE,
                f"the {stage} produced NaN or infinity in {self._work.dtype}; try --dtype float32, "
                "and look at the prompt, the guidance scale and the weights",
            )


class WriteImages(_Worker):
    """Decodes latents, encodes images on other threads, writes the part and commits it."""

    def __init__(self, work: GenerateWork, hub: Any) -> None:
        super().__init__(work, hub, "write")
        models = load_models(work, components=("vae",), stages=("base",))
        self._model = models["base"]
        self._store = open_store(work.out, retries=work.retries, timeout_s=work.timeout_s)
        self._codec = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="codec")
        self._lock = threading.Lock()

    def __call__(self, message: pa.Table) -> pa.Table:
        """A message becomes one row of counts for the driver; the part is committed by then."""
        work = from_message(message)
        if work.fatal:
            return failed_report(work.part, work.fatal)
        attempt = self._begin(work.part)
        started = time.perf_counter()
        encoding: dict[int, concurrent.futures.Future[bytes]] = {}

        def decode(work: PartWork, rows: list[RowWork]) -> None:
            for row in rows:
                if row.error is None and row.input_row not in encoding:
                    self._decode(row, encoding)

        failures.guard_rows(
            work,
            decode,
            stage=self._stage,
            attempt=attempt,
            max_attempts=self._work.max_attempts,
        )
        images = {row: future.result() for row, future in encoding.items()}
        decoded = time.perf_counter()
        records: list[Any] = []
        failures.guard_commit(
            work,
            lambda: records.append(commit_images(self._work, self._store, work, images)),
            stage=self._stage,
        )
        if work.fatal:
            return failed_report(work.part, work.fatal)
        done = time.perf_counter()
        num_rows = len(work.rows)
        self._end(
            work.part, ("decode", num_rows, decoded - started), ("write", num_rows, done - decoded)
        )
        return part_report(records[-1])

    @torch.inference_mode()
    def _decode(
        self, row: RowWork, encoding: dict[int, "concurrent.futures.Future[bytes]"]
    ) -> None:
        assert row.latents is not None
        started = time.perf_counter()
        if self._work.output_format == "dry":
            return
        with self._lock:
            # One picture a call: its bits then do not depend on what else is in the part.
            rgb_BHWC, finite_B = decode_latents(
                self._model, row.latents[None].to(self._work.device)
            )
        row.seconds["decode"] = time.perf_counter() - started
        if not bool(finite_B[0]):
            row.error = RowError(
                Reason.NON_FINITE_IMAGE,
                f"the autoencoder produced NaN or infinity in {self._work.vae_dtype}; "
                "try --vae-dtype float32",
            )
            return
        rgb_HWC = to_uint8(rgb_BHWC[0])
        parameters = dict(vars(row.request)) | {"model_digest": self._work.model_digest}
        encoding[row.input_row] = self._codec.submit(
            encode_image, rgb_HWC, image_format=self._work.image_format, parameters=parameters
        )


def to_uint8(rgb_HWC: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture in [0, 1] as bytes, rounded as diffusers rounds it."""
    return (rgb_HWC * 255).round().to(torch.uint8).cpu().numpy()
