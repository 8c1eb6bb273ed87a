"""Staged rows become parts of the dataset: each once, in random order, the same bytes each time."""

import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sdxl_core.contract.errors import SchemaError
from sdxl_core.contract.samples import Rejection, samples_schema, staged_schema
from sdxl_core.storage.finished_parts import finish_group
from sdxl_core.storage.integrity import check_dataset
from sdxl_core.storage.parts import PartRecord
from sdxl_core.storage.sample_parts import SampleFormat, bucket_of_path, read_bucket_file
from sdxl_core.storage.sample_totals import add_totals, totals_from_json
from sdxl_core.storage.staged_parts import read_parquet, read_staged_columns, read_staged_index
from sdxl_core.storage.stores import Store, open_store
from tests.sdxl_core.storage.staged_samples import (
    Result,
    finish,
    make_rejection,
    make_sample,
    plain_rows,
    plan,
    stage,
)

# A busy machine needs long for a child process that imports torch, and for 1,700 fsyncs.
pytestmark = pytest.mark.timeout(400)


@st.composite
def staged_parts(draw: st.DrawFn) -> list[list[Result]]:
    """Some slices; each row is rejected or has one to three samples."""
    parts: list[list[Result]] = []
    for part in range(draw(st.integers(1, 3))):
        results: list[Result] = []
        for row in range(draw(st.integers(0, 5))):
            num_crops = draw(st.integers(0, 3))
            num_bytes = draw(st.integers(0, 900))
            crops = [None] if num_crops == 1 else range(num_crops)
            samples = [make_sample(part, row, crop=c, num_bytes=num_bytes) for c in crops]
            results.append(samples or make_rejection(part, row))
        parts.append(draw(st.permutations(results)))
    return parts


def read_samples(store: Store, records: list[PartRecord]) -> pa.Table:
    """All samples, by part and then by bucket."""
    tables = [
        read_bucket_file(store, file.path)
        for record in records
        for file in record.files
        if bucket_of_path(file.path)
    ]
    return pa.concat_tables(tables) if tables else samples_schema().empty_table()


def read_rejected(store: Store, records: list[PartRecord]) -> pa.Table:
    paths = [file.path for record in records for file in record.files if "rejected/" in file.path]
    assert len(paths) == len(records)
    return pa.concat_tables([read_parquet(store, path) for path in paths])


def keys_of(table: pa.Table) -> list[tuple[int, int]]:
    return [(row["source_slice"], row["row_index"]) for row in table.to_pylist()]


def all_bytes(store: Store) -> dict[str, bytes]:
    kept = [file.path for file in store.list() if not file.path.startswith("_staging")]
    return {path: store.read_bytes(path) for path in kept}


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example writes a dozen files
)
@given(
    parts=staged_parts(),
    unit_bytes=st.integers(1, 3000),
    group_bytes=st.integers(1, 6000),
    output_format=st.sampled_from(["parquet", "webdataset"]),
    data=st.data(),
)
def test_every_source_row_comes_out_once_whatever_the_groups_are(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[list[Result]],
    unit_bytes: int,
    group_bytes: int,
    output_format: SampleFormat,
    data: st.DataObject,
) -> None:
    store = open_store(tmp_path_factory.mktemp("out"))
    staging = stage(store, parts, unit_bytes=unit_bytes)
    source_rows = {(part, n) for part, results in enumerate(parts) for n in range(len(results))}
    staged = read_staged_columns(staging, read_staged_index(staging), list(staged_schema().names))
    num_with_samples = len(set(keys_of(staged)))
    losers = data.draw(st.sets(st.integers(0, max(0, num_with_samples - 1)), max_size=3))
    losers &= set(range(1, num_with_samples))

    layout = plan(staging, group_bytes=group_bytes, duplicates=[(loser, 0) for loser in losers])
    records = finish(store, staging, layout, output_format=output_format)

    samples, rejected = read_samples(store, records), read_rejected(store, records)
    assert set(keys_of(samples)) | set(keys_of(rejected)) == source_rows
    assert len(set(keys_of(samples))) + rejected.num_rows == len(source_rows)
    assert Counter(rejected["reason"].to_pylist())["duplicate_near"] == len(losers)
    kept = set(keys_of(samples))
    expected = [row for row in staged.drop_columns("phash").to_pylist()
                if (row["source_slice"], row["row_index"]) in kept]  # fmt: skip
    assert sorted(samples.to_pylist(), key=str) == sorted(expected, key=str)
    assert sum(record.extra["num_source_rows"] for record in records) == len(source_rows)
    assert not check_dataset(store).problems
    totals = add_totals(totals_from_json(record.extra["totals"]) for record in records)
    assert totals.num_source_rows == len(source_rows)
    assert totals.num_samples == samples.num_rows == sum(totals.num_by_bucket.values())
    assert totals.num_rejected == rejected.num_rows == sum(totals.num_by_reason.values())


@pytest.mark.parametrize("group_bytes", [1 << 20, 30_000])
def test_reading_a_bucket_from_start_to_end_is_random_order(
    tmp_path: Path, group_bytes: int
) -> None:
    store = open_store(tmp_path)
    staging = stage(store, [plain_rows(900, part=p, num_bytes=100) for p in range(3)])

    layout = plan(staging, group_bytes=group_bytes)
    records = finish(store, staging, layout)

    assert layout.num_groups == (1 if group_bytes == 1 << 20 else 10)
    for bucket in [(16, 16), (24, 16)]:
        tables = [
            read_bucket_file(store, file.path, ["source_slice", "row_index"])
            for record in records
            for file in record.files
            if bucket_of_path(file.path) == bucket
        ]
        rows = [part * 900 + row for table in tables for part, row in keys_of(table)]
        assert len(rows) == 900
        ranks_N = np.argsort(np.argsort(rows))
        # The correlation of 900 independent ranks has the standard deviation 1/30. Whole units
        # move together where there are many groups: 135 of them carry it, hence 1/11.
        bound = 4 / 30 if layout.num_groups == 1 else 4 / 11
        assert abs(np.corrcoef(ranks_N, np.arange(900))[0, 1]) < bound
        assert abs(np.corrcoef(ranks_N[1:], ranks_N[:-1])[0, 1]) < bound


def test_order_does_not_follow_random_crops_that_are_drawn_from_seed_and_id(
    tmp_path: Path,
) -> None:
    from sdxl_core.contract.seeds import row_seed

    store = open_store(tmp_path)
    staging = stage(store, [plain_rows(600, num_bytes=10)])
    samples = read_samples(store, finish(store, staging, plan(staging, seed=3)))

    seeds = [row_seed(3, sample_id) for sample_id in samples["id"].to_pylist()[:200]]
    assert abs(np.corrcoef(np.argsort(np.argsort(seeds)), np.arange(200))[0, 1]) < 4 / 14


@pytest.mark.parametrize("output_format", ["parquet", "webdataset"])
def test_finish_task_that_was_killed_writes_the_same_bytes_when_it_runs_again(
    tmp_path: Path, output_format: SampleFormat
) -> None:
    parts = [[*plain_rows(20, part=p), make_rejection(p, 20)] for p in range(2)]
    untouched, killed = open_store(tmp_path / "untouched"), open_store(tmp_path / "killed")
    for store in (untouched, killed):
        plan(stage(store, parts))
    script = f"""
        import os, signal, time
        from sdxl_core.storage.finished_parts import finish_group
        from sdxl_core.storage.staged_parts import staging_store
        from sdxl_core.storage.staging_layout import read_layout
        from sdxl_core.storage.stores import open_store
        store = open_store({str(tmp_path / "killed")!r})
        staging = staging_store(store)
        def encode(bucket, samples):
            if bucket != (16, 16):  # the second one
                while not store.list("bucket=16x16"):  # the first is being written
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            return samples.append_column("moments", samples["image"])
        finish_group(store, staging, read_layout(staging), 0, encode=encode,
                     output_format={output_format!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [bucket_of_path(path) for path in all_bytes(killed)] == [(16, 16)]

    for store in (untouched, killed):
        staging = stage(store, parts)
        finish(store, staging, plan(staging), output_format=output_format)

    first, second = all_bytes(untouched), all_bytes(killed)
    records = {path for path in first if path.startswith("_parts/")}
    assert first.keys() == second.keys()
    assert {p: first[p] for p in first if p not in records} == {
        p: second[p] for p in second if p not in records
    }


def as_moments(samples: pa.Table, moments: list[bytes | None]) -> pa.Table:
    columns = {name: samples[name] for name in samples.column_names if name != "image"}
    columns["moments"] = pa.array(moments, pa.binary())
    columns["moments_dtype"] = pa.array(["float16"] * len(moments))
    columns["moments_shape"] = pa.array([[8, 2, 2]] * len(moments), pa.list_(pa.int32()))
    schema = samples_schema(latents=True)
    return pa.table([columns[name] for name in schema.names], schema=schema)


@pytest.mark.parametrize("output_format", ["parquet", "webdataset"])
def test_row_with_moments_that_are_not_finite_is_rejected_with_all_its_crops(
    tmp_path: Path, output_format: SampleFormat
) -> None:
    rows: list[Result] = [[make_sample(0, n, crop=c) for c in range(3)] for n in range(6)]
    store = open_store(tmp_path)
    staging = stage(store, [rows])

    def encode(bucket: tuple[int, int], samples: pa.Table) -> pa.Table:
        ids = samples["id"].to_pylist()
        assert samples.schema == samples_schema()
        bad = ("part0/00001#2", "part0/00004#0", "part0/00004#1")
        return as_moments(samples, [None if i in bad else i.encode() for i in ids])

    records = finish(store, staging, plan(staging), encode=encode, output_format=output_format)

    samples, rejected = read_samples(store, records), read_rejected(store, records)
    assert keys_of(rejected) == [(0, 1), (0, 4)]
    assert set(rejected["reason"].to_pylist()) == {"non_finite_latents"}
    assert Counter(keys_of(samples)) == {(0, n): 3 for n in (0, 2, 3, 5)}
    assert samples.schema.equals(samples_schema(latents=True))
    assert [m.decode() for m in samples["moments"].to_pylist()] == samples["id"].to_pylist()
    assert not check_dataset(store).problems


def test_source_row_with_two_results_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    staging = stage(store, [plain_rows(3)])
    layout = plan(staging)

    def encode(bucket: tuple[int, int], samples: pa.Table) -> pa.Table:
        ones = pa.array([1] * samples.num_rows, pa.int64())
        return as_moments(samples, [b""] * samples.num_rows).set_column(
            samples.schema.get_field_index("row_index") + 2, "row_index", ones
        )

    with pytest.raises(SchemaError, match="two results"):
        finish_group(store, staging, layout, 0, encode=encode)


def test_dataset_of_which_all_rows_are_rejected_has_one_part(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    rejections: list[Rejection] = [make_rejection(0, row) for row in range(5)]
    staging = stage(store, [rejections, []])

    records = finish(store, staging, plan(staging))

    assert [record.num_by_status for record in records] == [{"sample": 0, "rejected": 5}]
    assert keys_of(read_rejected(store, records)) == [(0, row) for row in range(5)]


@pytest.mark.s3
def test_groups_are_finished_on_s3(moto_url: str) -> None:
    store = open_store(moto_url)
    staging = stage(store, [plain_rows(9), [make_rejection(1, 0)]])

    records = finish(store, staging, plan(staging, group_bytes=5000), output_format="webdataset")

    assert read_samples(store, records).num_rows == 9
    assert not check_dataset(store).problems
