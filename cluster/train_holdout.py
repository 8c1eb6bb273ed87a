"""The loss of samples that are never trained on, measured now and then with the present weights.

Every sample's noise, level and caption come from the run's seed and its id, the same each time, and
nothing is dropped. Groups of samples do not depend on the number of workers, so neither does the
result, but for the last digits of weights that were trained by another number.
"""

from collections.abc import Sequence

import pyarrow as pa
import torch
import torch.distributed as dist

from cluster.ingest import IngestWork
from cluster.train_stages import LossesOf
from cluster.train_work import Holdout
from cluster.zero import ZeroEngine
from sdxl_core.data.holdout import HeldRow, groups_of_one_size
from sdxl_core.storage.sample_reading import read_unit
from sdxl_core.storage.stores import open_file
from sdxl_core.training.seeded_batches import SampleBatch, gather_rows, make_batch

# Samples of one forward pass; no gradients are kept.
_GROUP_SIZE = 4
# What a discriminator says is no measure: it changes all the time.
_LEFT_OUT = ("adversarial", "adversarial_factor", "discriminator")


class HoldoutMeter:
    """Measures a worker's share of the samples; all workers do it together.

    Args:
        holdout: what is measured.
        ingest: how samples are read. They are read once, at the first measurement, and kept.
    """

    def __init__(self, holdout: Holdout, ingest: IngestWork) -> None:
        self._groups = list(groups_of_one_size(holdout.rows, _GROUP_SIZE))
        self._ingest = ingest
        self._batches: dict[int, SampleBatch] = {}

    def measure(self, engine: ZeroEngine, losses_of: LossesOf, *, device: str) -> dict[str, float]:
        """The mean loss of all samples, and means of what else is told of them, by name.

        Args:
            engine: of this worker; its state stays as it is.
            losses_of: the losses of samples without dropout.
            device: of what the workers exchange.

        Raises:
            StoreError: samples cannot be read.
        """
        world_size = dist.get_world_size()
        num_rounds = -(-len(self._groups) // world_size)
        sums: dict[str, torch.Tensor] = {}
        engine.module.eval()
        with torch.no_grad():
            for turn in range(num_rounds):
                # At ZeRO 3 all workers have to take part in every pass.
                number = turn * world_size + dist.get_rank()
                is_counted = number < len(self._groups)
                losses = losses_of(engine, self._batch(number if is_counted else 0), 0)
                told = {"loss": losses.error_B, **losses.parts}
                for name in (name for name in told if name not in _LEFT_OUT):
                    # A place for each group, so that sums are added in one order.
                    total_G = sums.setdefault(name, _zeros(len(self._groups), device))
                    if is_counted:
                        total_G[number] = told[name].double().sum()
        engine.module.train()
        together = torch.stack(list(sums.values()))
        dist.all_reduce(together)
        num_samples = sum(len(group) for group in self._groups)
        means = (together.cpu().sum(1) / num_samples).tolist()
        return {f"holdout/{name}": mean for name, mean in zip(sums, means, strict=True)}

    def _batch(self, number: int) -> SampleBatch:
        if number not in self._batches:
            self._batches[number] = _read_group(self._groups[number], self._ingest)
        return self._batches[number]


def _read_group(group: Sequence[HeldRow], ingest: IngestWork) -> SampleBatch:
    """Rows of one bucket, as a run that has never met them sees them."""
    numbers: dict[tuple[str, int], int] = {}
    units: dict[int, pa.Table] = {}
    for row in group:
        if (row.url, row.unit) not in numbers:
            number = numbers[row.url, row.unit] = len(numbers)
            store, path = open_file(row.url, retries=ingest.retries, timeout_s=ingest.timeout_s)
            units[number] = read_unit(store, path, row.unit, ingest.view.columns)
    rows = gather_rows(
        units, [numbers[row.url, row.unit] for row in group], [row.row for row in group]
    )
    return make_batch(rows, [0] * len(group), ingest.view, group[0].bucket)


def _zeros(num: int, device: str) -> torch.Tensor:
    return torch.zeros(num, dtype=torch.float64, device=device)
