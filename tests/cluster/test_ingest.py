"""Planned rows come to the workers as planned; no Ray is needed to see it."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from cluster.ingest import IngestWork, RankStep, check_shares, local_steps
from sdxl_core.contract.errors import ConfigError, StoreError
from sdxl_core.contract.seeds import sample_seed
from sdxl_core.data.manifest import manifest_of
from sdxl_core.data.plan import PlanSettings, plan_batches
from sdxl_core.storage.sample_reading import read_unit
from sdxl_core.storage.stores import open_file
from sdxl_core.training.seeded_batches import SampleView
from tests.cluster.train_samples import CAPTIONS, write_samples

SEED, BATCH = 5, 8


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_samples(tmp_path_factory.mktemp("samples"), model_digest="m")


def ingest_work(samples: str, *, world_size: int = 1, num_accumulated: int = 1) -> IngestWork:
    return IngestWork(
        manifest=manifest_of([samples]),
        plan=PlanSettings(seed=SEED, global_batch_size=BATCH, window_units=2),
        batch_multiple=1,
        view=SampleView(run_seed=SEED, pixels="latents", texts="live", with_aesthetic=True),
        world_size=world_size,
        num_accumulated=num_accumulated,
    )


def steps_of(work: IngestWork, rank: int, *, start: int, stop: int) -> list[RankStep]:
    return list(itertools.islice(local_steps(work, start=start, rank=rank), stop - start))


def test_ranks_together_consume_the_plan_in_order_whatever_their_number(samples: str) -> None:
    """Killed after 3 steps at 2 workers, then 4 workers with 2 passes, then 1: the same rows."""
    work = ingest_work(samples)
    planned = [
        planned_ids(work, batch.unit.tolist(), batch.row.tolist())
        for batch in itertools.islice(plan_batches(work.manifest, work.plan), 12)
    ]
    consumed: dict[int, list[str]] = {}
    for world_size, num_accumulated, start, stop in ((2, 2, 0, 3), (4, 2, 3, 8), (1, 1, 8, 12)):
        part = ingest_work(samples, world_size=world_size, num_accumulated=num_accumulated)
        ranks = [steps_of(part, rank, start=start, stop=stop) for rank in range(world_size)]
        for steps in zip(*ranks, strict=True):
            assert len({step.bucket for step in steps}) == 1
            passes = [[step.batches[a] for step in steps] for a in range(num_accumulated)]
            ids = [name for together in passes for batch in together for name in batch.ids]
            consumed[steps[0].index] = ids
    assert list(consumed.values()) == planned
    assert list(consumed) == list(range(12))


def planned_ids(work: IngestWork, units: list[int], rows: list[int]) -> list[str]:
    manifest = work.manifest
    names = []
    for unit, row in zip(units, rows, strict=True):
        store, path = open_file(manifest.files[manifest.unit_file[unit]])
        table = read_unit(store, path, int(manifest.unit_index[unit]), ["id"])
        names.append(table["id"][row].as_py())
    return names


def test_a_sample_comes_with_its_own_latents_numbers_and_seed(samples: str) -> None:
    step = next(local_steps(ingest_work(samples), start=0, rank=0))
    (batch,) = step.batches
    height, width = step.bucket
    assert batch.moments_BCHW is not None
    assert batch.moments_BCHW.shape == (BATCH, 8, height // 8, width // 8)
    assert batch.moments_BCHW.dtype == np.float16
    for place, name in enumerate(batch.ids):
        part, _, row = name.split("/")
        rng = np.random.default_rng([int(part), height, width])
        expected = [rng.normal(size=(8, height // 8, width // 8)) for _ in range(int(row) + 1)]
        np.testing.assert_array_equal(batch.moments_BCHW[place], expected[-1].astype(np.float16))
        assert batch.columns["crop_left"][place] == int(row) % 5
        assert batch.columns["aesthetic"][place] == 5.0 + int(row) % 3
        assert batch.seeds[place] == sample_seed(SEED, 0, name)
        assert batch.captions[place] in CAPTIONS[int(row) % 4 :]


def test_captions_differ_between_visits_and_are_the_same_again(samples: str) -> None:
    """Every row comes several times within 24 batches of 8 rows: 70 rows in all."""
    work = ingest_work(samples)
    chosen: dict[str, list[str]] = {}
    for step in steps_of(work, 0, start=0, stop=24):
        for name, caption in zip(step.batches[0].ids, step.batches[0].captions, strict=True):
            chosen.setdefault(name, []).append(caption)
    several = [captions for name, captions in chosen.items() if name.endswith(("000", "004"))]
    assert any(len(set(captions)) > 1 for captions in several)
    late = steps_of(work, 0, start=20, stop=24)
    assert [s.batches[0].captions for s in late] == [
        s.batches[0].captions for s in steps_of(work, 0, start=0, stop=24)[20:]
    ]


def test_a_batch_that_cannot_be_shared_is_refused(samples: str) -> None:
    work = ingest_work(samples, world_size=3)
    with pytest.raises(ConfigError, match="8 samples cannot be shared by 3 workers"):
        check_shares(BATCH, work)


def test_a_file_that_is_gone_stops_the_run_with_its_name(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "s", model_digest="m")
    work = ingest_work(path)
    lost = sorted((tmp_path / "s").rglob("part-*.parquet"))[0]
    lost.rename(lost.with_suffix(".lost"))
    with pytest.raises(StoreError, match=lost.name):
        steps_of(work, 0, start=0, stop=12)
