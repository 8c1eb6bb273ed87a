"""The first pool: reads parts, resolves their rows, encodes their texts."""

import threading
import time
from typing import Any

import pyarrow as pa

from cluster import failures
from cluster.loading import load_models
from cluster.messages import PartWork, RowWork, message_part, to_message
from cluster.work import GenerateWork
from cluster.worker import Worker
from cluster.writing import rows_made_before
from sdxl_core.contract.part_requests import resolve_part
from sdxl_core.diffusion.text_stage import TextStage
from sdxl_core.storage.stores import open_store
from sdxl_core.storage.tables import read_part


class EncodePrompts(Worker):
    """Reads a part, resolves its rows and encodes their texts."""

    def __init__(self, work: GenerateWork, hub: Any) -> None:
        super().__init__(work, hub, "encode")
        models = load_models(work, components=("text_encoder", "text_encoder_2"))
        self._texts = TextStage(models)
        self._store = open_store(work.out, retries=work.retries, timeout_s=work.timeout_s)
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
        table = read_part(place, retries=self._work.retries, timeout_s=self._work.timeout_s)
        resolved = resolve_part(
            table,
            first_row=place.global_first_row,
            defaults=self._work.defaults,
            run_seed=self._work.run_seed,
            duplicates=self._work.duplicates.get(part),
            has_refiner=self._work.refiner is not None,
        )
        made = rows_made_before(self._work, self._store, part)
        rows = [
            RowWork(input_row=row, request=request)
            for row, request in resolved.requests
            if row not in made
        ]
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
