"""The pool that does the work: rows of several parts share the slots of one device's engines."""

import concurrent.futures
import threading
import time
from typing import Any

import pyarrow as pa

from cluster import failures
from cluster.loading import load_models
from cluster.messages import PartWork, RowWork, StageName, from_message, to_message
from cluster.work import DTYPES, GenerateWork
from cluster.worker import Worker
from sdxl_core.contract.errors import RowError
from sdxl_core.diffusion.conditioning import condition
from sdxl_core.diffusion.decoding import denoise_error
from sdxl_core.diffusion.engine import Engine, OutOfMemoryRow, unet_network
from sdxl_core.diffusion.refinement import base_task, refiner_task
from sdxl_core.diffusion.service import EngineService, Outcome
from sdxl_core.diffusion.tasks import Conditioning, DenoiseTask
from sdxl_core.nets.model import SdxlModel

_SPAN_OF: dict[StageName, str] = {"base": "denoise", "refiner": "refine"}


class Denoise(Worker):
    """Runs the rows of a part through the base, the refiner, or both on one device."""

    def __init__(self, work: GenerateWork, hub: Any, stages: tuple[StageName, ...]) -> None:
        super().__init__(work, hub, "+".join(stages))
        self._stages = stages
        self._models = load_models(work, components=("unet",), stages=stages)
        self._lock = threading.Lock()
        self._restart = threading.Lock()
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
        with self._lock:
            if self._service.failed:
                # A network call that failed took the loop with it; the rows get a new one.
                self._start_service()
        waiting: dict[concurrent.futures.Future[Outcome], tuple[RowWork, StageName]] = {}
        for row in rows:
            self._submit_next(work, row, waiting)
        while waiting:
            done, _ = concurrent.futures.wait(
                waiting, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                row, stage = waiting.pop(future)
                self._take(row, stage, future.result())
                self._submit_next(work, row, waiting)

    def _submit_next(
        self,
        work: PartWork,
        row: RowWork,
        waiting: dict[concurrent.futures.Future[Outcome], tuple[RowWork, StageName]],
    ) -> None:
        """Hands the row to the first network of this worker that it needs and has not been through.

        A row that is tried again after a failure of others is not refined twice.
        """
        for stage in self._stages:
            if stage == "refiner" and not row.request.refiner:
                continue
            if row.error is None and _SPAN_OF[stage] not in row.seconds:
                try:
                    task = self._task(work, row, stage)
                except RowError as error:
                    row.error = error
                    return
                waiting[self._service.submit(stage, task)] = (row, stage)
                return

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
        row.error = denoise_error(outcome, kind=stage, dtype=DTYPES[self._work.dtype])
        if isinstance(outcome, OutOfMemoryRow):
            return
        row.latents = outcome.latents_CHW
        row.num_draws = outcome.num_draws_done
        row.num_slots = outcome.num_slots
        row.seconds[_SPAN_OF[stage]] = outcome.seconds
