"""A manifest is all samples of its datasets; what is planned from it is what is read."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sdxl_core.contract.errors import ConfigError, SchemaError
from sdxl_core.data.plan import PlanSettings, SampleManifest, manifest_of, plan_batches, plan_epoch
from sdxl_core.storage.parts import write_summary
from sdxl_core.storage.sample_reading import read_unit
from sdxl_core.storage.stores import open_file, open_store
from tests.sdxl_core.data.manifests import make_manifest
from tests.sdxl_core.storage.staged_samples import (
    Result,
    finish,
    make_rejection,
    make_sample,
    plan,
    stage,
)


def write_dataset(folder: Path, parts: list[list[Result]]) -> str:
    store = open_store(folder)
    staging = stage(store, parts)
    finish(store, staging, plan(staging, group_bytes=20_000))
    write_summary(store, {})
    return store.url


def rows(part: int, count: int) -> list[Result]:
    return [[make_sample(part, row, num_bytes=100)] for row in range(count)]


def test_planned_rows_are_read_from_all_datasets_as_often_as_they_weigh(tmp_path: Path) -> None:
    """Batches of one row, so that nothing is carried; ids tell the rows of each part apart."""
    urls = [
        write_dataset(tmp_path / "one", [rows(0, 200), rows(1, 90)]),
        write_dataset(tmp_path / "other", [rows(2, 70)]),
    ]
    manifest = manifest_of(urls, [1.0, 3.0])
    assert manifest.buckets == ((16, 16), (16, 24), (24, 16))
    assert manifest.num_rows == 290 + 70
    assert sum(manifest.rows_of_bucket.values()) == 360

    seen: Counter[str] = Counter()
    settings = PlanSettings(seed=0, global_batch_size=1)
    for batch in plan_epoch(manifest, settings, 0).batches():
        unit, row = int(batch.unit[0]), int(batch.row[0])
        store, path = open_file(manifest.files[manifest.unit_file[unit]])
        columns = ["id", "target_height", "target_width"]
        table = read_unit(store, path, int(manifest.unit_index[unit]), columns)
        sample = table.slice(row, 1).to_pylist()[0]
        assert (sample["target_height"], sample["target_width"]) == batch.bucket
        seen[sample["id"]] += 1
    once = {f"part{part}/{row:05d}": 1 for part, n in ((0, 200), (1, 90)) for row in range(n)}
    assert seen == once | {f"part2/{row:05d}": 3 for row in range(70)}


def test_digest_tells_data_and_weights_and_not_places(tmp_path: Path) -> None:
    one, moved = (write_dataset(tmp_path / name, [rows(0, 30)]) for name in ("one", "moved"))
    other = write_dataset(tmp_path / "other", [rows(0, 31)])
    digest = manifest_of([one]).digest
    assert digest == manifest_of([moved]).digest
    assert digest == manifest_of([one], [1]).digest
    different = [manifest_of([one], [2.0]), manifest_of([other]), manifest_of([one, other])]
    digests = {digest, *(manifest.digest for manifest in different)}
    assert len(digests) == 4
    assert manifest_of([other, one]).digest not in digests

    settings = PlanSettings(seed=0, global_batch_size=4)
    plans = [plan_batches(manifest_of([url]), settings) for url in (one, moved)]
    for here, there in itertools.islice(zip(*plans, strict=True), 20):
        assert np.array_equal(here.unit, there.unit)
        assert np.array_equal(here.row, there.row)


def test_digest_of_arrays_changes_with_each_of_them() -> None:
    manifest = make_manifest([(0, 3, 0), (1, 4, 1)], weights=(1.0, 2.0))
    changes: list[dict[str, object]] = [
        {},
        {"unit_rows": np.array([3, 5], np.int32)},
        {"unit_bucket": np.array([1, 1], np.int32)},
        {"unit_index": np.array([0, 7], np.int32)},
        {"unit_dataset": np.array([1, 1], np.int16)},
        {"buckets": manifest.buckets[:2]},
        {"dataset_weights": (1.0, 2.5)},
        {"files": ("other.parquet",)},
    ]
    digests = {dataclasses.replace(manifest, **change).digest for change in changes}  # type: ignore[arg-type]
    assert len(digests) == len(changes)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        ([], None, "expected at least one dataset"),
        (["one", "one/"], None, "each once"),
        (["one"], [1.0, 2.0], "with one weight"),
        (["one"], [0.0], r"weight of dataset 0: found 0.0, expected a number above 0"),
        (["one"], [float("nan")], "found nan"),
    ],
)
def test_datasets_that_cannot_be_mixed_are_refused(
    tmp_path: Path, names: list[str], weights: list[float] | None, message: str
) -> None:
    write_dataset(tmp_path / "one", [rows(0, 5)])
    with pytest.raises(ConfigError, match=message):
        manifest_of([f"{tmp_path}/{name}" for name in names], weights)


def test_dataset_without_samples_is_refused(tmp_path: Path) -> None:
    url = write_dataset(tmp_path, [[make_rejection(0, 0)]])
    with pytest.raises(SchemaError, match=f"{tmp_path}: found no samples"):
        manifest_of([url])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit_rows": np.array([3, 0], np.int32)}, "unit_rows from 0 to 3, expected 1 to"),
        ({"unit_bucket": np.array([0, 4], np.int32)}, "unit_bucket from 0 to 4, expected 0 to 3"),
        ({"unit_file": np.array([-1, 0], np.int32)}, "unit_file from -1"),
        ({"unit_dataset": np.array([0, 1], np.int16)}, "unit_dataset from 0 to 1, expected 0 to 0"),
        ({"unit_index": np.array([0], np.int32)}, r"expected int32 \(dataset: int16\), \[U\]"),
        ({"unit_index": np.array([0, 1])}, "int64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    manifest: SampleManifest = make_manifest([(0, 3, 0), (1, 4, 0)])
    with pytest.raises(SchemaError, match=message):
        dataclasses.replace(manifest, **change)  # type: ignore[arg-type]
