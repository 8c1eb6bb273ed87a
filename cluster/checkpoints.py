"""Training checkpoints of a group of workers, written while the training goes on.

Each worker copies its share of the state, which is what the training waits for, and uploads it from
a thread. The first worker's thread waits for the others' files to appear in the store and then
writes the commit record; the workers need not meet for it. One checkpoint is in flight at a time.
"""

import concurrent.futures
import dataclasses
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.zero import ZeroEngine
from sdxl_core.storage.stores import Store
from sdxl_core.training.checkpoint_store import (
    CheckpointRecord,
    commit,
    delete_old,
    fetch_states,
    wait_for_states,
    write_state,
)
from sdxl_core.training.pieces import Piece, PieceReader, write_pieces

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training run stands.

    Args:
        step: global batches done, the place in the data.
        num_updates: optimizer steps among them.
        num_skipped: the others: their gradient was not finite.
        num_skipped_in_row: of these, the last ones without an update between them.
        num_samples: samples seen.
    """

    step: int = 0
    num_updates: int = 0
    num_skipped: int = 0
    num_skipped_in_row: int = 0
    num_samples: int = 0


class Checkpointer:
    """Writes the checkpoints of one worker; the first one's also commits them.

    Args:
        store: of the run.
        rank: of this worker.
        world_size: workers.
        token: drawn anew by every start of the workers, the same on all.
        fingerprint: of what is trained.
        model: what the record says of the other networks.
        keep: checkpoints that stay, >= 1.
        timeout_s: longest wait for the other workers' files.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        world_size: int,
        token: str,
        fingerprint: str,
        model: dict[str, Any],
        keep: int,
        timeout_s: float = 1800.0,
    ) -> None:
        self._store = store
        self._rank, self._world_size, self._token = rank, world_size, token
        self._fingerprint, self._model, self._keep = fingerprint, model, keep
        self._timeout_s = timeout_s
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: concurrent.futures.Future[None] | None = None
        self._last_step = -1

    def save(self, engine: ZeroEngine, progress: Progress) -> None:
        """Begins to write the state after ``progress``; waits for the one before if need be.

        Raises:
            StoreError: the one before could not be written.
        """
        if progress.step == self._last_step:
            return
        self.finish()
        self._last_step = progress.step
        copies = [_copy(piece) for piece in engine.pieces()]
        self._in_flight = self._pool.submit(self._write, copies, engine.shapes, progress)

    def finish(self) -> None:
        """Waits until what was begun is written, and committed if this is the first worker.

        Raises:
            StoreError: it could not be.
        """
        if self._in_flight is not None:
            self._in_flight.result()
            self._in_flight = None

    def close(self) -> None:
        """Ends the thread. What was begun is given up, unless ``finish`` has waited for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _write(
        self, pieces: Sequence[Piece], shapes: dict[str, tuple[int, ...]], progress: Progress
    ) -> None:
        started = time.monotonic()
        step = progress.step
        with tempfile.TemporaryDirectory(prefix="sdxl-checkpoint-") as folder:
            path = Path(folder, "state.safetensors")
            write_pieces(path, pieces)
            write_state(
                self._store,
                step,
                path,
                rank=self._rank,
                world_size=self._world_size,
                token=self._token,
            )
        if self._rank:
            return
        files = wait_for_states(
            self._store,
            step,
            world_size=self._world_size,
            token=self._token,
            timeout_s=self._timeout_s,
        )
        record = CheckpointRecord(
            step=step,
            fingerprint=self._fingerprint,
            world_size=self._world_size,
            num_updates=progress.num_updates,
            num_skipped=progress.num_skipped,
            num_skipped_in_row=progress.num_skipped_in_row,
            num_samples=progress.num_samples,
            shapes=shapes,
            files=files,
            model=self._model,
            time=time.time(),
        )
        commit(self._store, record)
        delete_old(self._store, keep=self._keep)
        logger.info("checkpoint of step %d: %.1f s", step, time.monotonic() - started)


def progress_of(record: CheckpointRecord) -> Progress:
    """Where the run stood when the checkpoint was taken."""
    return Progress(
        step=record.step,
        num_updates=record.num_updates,
        num_skipped=record.num_skipped,
        num_skipped_in_row=record.num_skipped_in_row,
        num_samples=record.num_samples,
    )


def load_checkpoint(
    engine: ZeroEngine, store: Store, record: CheckpointRecord, folder: Path, *, local_rank: int = 0
) -> Progress:
    """Takes up the state of a checkpoint, of workers of any number.

    Args:
        engine: of this worker; all workers call this.
        store: of the run that wrote the checkpoint.
        record: its commit record.
        folder: on this worker's disk, the same for all workers of a machine; files of a store that
            is not local are copied there.
        local_rank: of this worker on its machine; the first one copies and checks.

    Raises:
        StoreError: a file is missing or is not the one that was committed.
        WeightsError: it is of another network.
    """
    if local_rank == 0:
        fetch_states(store, record, folder)
    dist.barrier()
    reader = PieceReader(fetch_states(store, record, folder, verify=False))
    engine.load(reader, num_updates=record.num_updates)
    return progress_of(record)


def _copy(piece: Piece) -> Piece:
    """The piece in memory of the host, which the next steps do not change."""
    tensors = {
        kind: torch.empty_like(tensor, device="cpu").copy_(tensor)
        for kind, tensor in piece.tensors.items()
    }
    return dataclasses.replace(piece, tensors=tensors)
