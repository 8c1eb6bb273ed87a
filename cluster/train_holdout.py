"""The loss of samples that are never trained on, measured now and then with the present weights.

Every sample's noise, level and caption come from the run's seed and its id, the same each time, and
nothing is dropped. Groups of samples do not depend on the number of workers, so neither does the
result, but for the last digits of weights that were trained by another number.

Legend of shape suffixes: B batch, G groups of samples, N samples, D features of a picture, 2 the
originals and the decoded pictures.
"""

import math
from collections.abc import Sequence

import pyarrow as pa
import torch
import torch.distributed as dist

from cluster.ingest import IngestWork
from cluster.train_stages import TrainStage
from cluster.train_work import Holdout
from cluster.zero import ZeroEngine
from sdxl_core.data.holdout import HeldRow, groups_of_one_size
from sdxl_core.storage.sample_reading import read_unit
from sdxl_core.storage.stores import open_file
from sdxl_core.training.autoencoder_network import bytes_of
from sdxl_core.training.picture_metrics import frechet_distance
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

    def measure(self, engine: ZeroEngine, stage: TrainStage, *, device: str) -> dict[str, float]:
        """The mean loss of all samples, means of what else is told of them, and rFID of decoded
        pictures if the stage has what it looks through; by name.

        Args:
            engine: of this worker; its state stays as it is.
            stage: what the engine trains.
            device: of what the workers exchange.

        Raises:
            StoreError: samples cannot be read.
        """
        world_size = dist.get_world_size()
        num_rounds = -(-len(self._groups) // world_size)
        sums: dict[str, torch.Tensor] = {}
        pairs = _FeaturePairs(self._groups, stage, device)
        engine.module.eval()
        with torch.no_grad():
            for turn in range(num_rounds):
                # At ZeRO 3 all workers have to take part in every pass.
                number = turn * world_size + dist.get_rank()
                is_counted = number < len(self._groups)
                samples = self._batch(number if is_counted else 0)
                losses = stage.held_losses_of(engine, samples, 0)
                told = {"loss": losses.error_B, **losses.parts}
                for name in (name for name in told if name not in _LEFT_OUT):
                    # A place for each group, so that sums are added in one order.
                    total_G = sums.setdefault(name, _zeros(len(self._groups), device))
                    if is_counted:
                        total_G[number] = told[name].double().sum()
                if is_counted:
                    pairs.add(number, samples, losses.decoded_BCHW)
        engine.module.train()
        together = torch.stack(list(sums.values()))
        dist.all_reduce(together)
        num_samples = sum(len(group) for group in self._groups)
        means = (together.cpu().sum(1) / num_samples).tolist()
        found = {f"holdout/{name}": mean for name, mean in zip(sums, means, strict=True)}
        return found | pairs.distance()

    def _batch(self, number: int) -> SampleBatch:
        if number not in self._batches:
            self._batches[number] = _read_group(self._groups[number], self._ingest)
        return self._batches[number]


class _FeaturePairs:
    """Features of held-out pictures and of what the autoencoder makes of them.

    Every sample has its place, so that the distance does not depend on who found what.
    """

    def __init__(self, groups: Sequence[Sequence[HeldRow]], stage: TrainStage, device: str) -> None:
        sizes = [len(group) for group in groups]
        self._starts = [sum(sizes[:number]) for number in range(len(sizes))]
        self._features_of, self._device = stage.picture_features, device
        num_features = 0 if self._features_of is None else self._features_of.num_features
        self._features_2ND = torch.zeros(2, sum(sizes), num_features, device=device)

    def add(self, number: int, samples: SampleBatch, decoded_BCHW: torch.Tensor | None) -> None:
        """Takes the pictures of one group."""
        if self._features_of is None or decoded_BCHW is None:
            return
        originals_BCHW = torch.tensor(samples.images_BHWC).permute(0, 3, 1, 2).to(self._device)
        places = slice(self._starts[number], self._starts[number] + len(originals_BCHW))
        for which, pictures_BCHW in enumerate((originals_BCHW, bytes_of(decoded_BCHW))):
            self._features_2ND[which, places] = self._features_of(pictures_BCHW)
        is_finite_B = decoded_BCHW.flatten(1).isfinite().all(1)
        self._features_2ND[1, places][~is_finite_B] = torch.nan

    def distance(self) -> dict[str, float]:
        """``holdout/rfid`` of all workers' pictures, on the first worker; all call it together.

        Not a number if a decoded picture is not finite.
        """
        if self._features_of is None:
            return {}
        dist.all_reduce(self._features_2ND)
        if dist.get_rank() > 0:  # who tells nobody; the library takes its time
            return {}
        originals_ND, decoded_ND = self._features_2ND
        if not decoded_ND.isfinite().all():
            return {"holdout/rfid": math.nan}
        return {"holdout/rfid": frechet_distance(originals_ND, decoded_ND)}


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
