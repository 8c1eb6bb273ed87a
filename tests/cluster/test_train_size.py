"""How many workers a run may have, whatever the cluster; and that they see the same data."""

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ingest import RankStep, local_steps
from cluster.resources import ClusterSize
from cluster.train_size import (
    TASK_CPUS,
    accumulated_passes,
    num_workers_on,
    plan_worker_cpus,
    refuse_sizes,
)
from cluster.train_worker import zero_settings
from cluster.zero import deepspeed_config
from sdxl_core.contract.errors import ConfigError, ResourceError
from sdxl_core.data.plan import PlanSettings
from tests.cluster.train_samples import write_samples
from tests.cluster.train_work import train_work
from tests.micro_models import write_models


def cluster(*cpus: float, gpus: float = 0.0) -> ClusterSize:
    return ClusterSize(
        num_cpus=sum(cpus),
        num_gpus=gpus * len(cpus),
        memory_bytes=1e9,
        nodes=tuple((cpu, gpus) for cpu in cpus),
    )


@given(st.integers(1, 64), st.integers(1, 16), st.integers(0, 8))
def test_passes_of_all_workers_are_the_batch_or_it_is_refused(
    batch: int, num_workers: int, micro: int
) -> None:
    each = num_workers * max(1, micro)
    if batch % each:
        with pytest.raises(ConfigError, match=f"found {batch}, which {num_workers} workers"):
            accumulated_passes(batch, num_workers, micro)
    else:
        passes = accumulated_passes(batch, num_workers, micro)
        rows = micro or batch // num_workers
        assert passes * rows * num_workers == batch


def test_a_range_with_a_number_that_cannot_share_names_those_that_can() -> None:
    refuse_sizes(48, range(1, 5), 4)
    with pytest.raises(ConfigError) as refusal:
        refuse_sizes(64, range(2, 9), 4)
    assert "2 to 8 workers, of which 3, 5, 6, 7 cannot share a batch of 64 in passes of 4" in str(
        refusal.value
    )
    assert "those that can are 2, 4, 8" in str(refusal.value)
    with pytest.raises(ConfigError, match="those that can are none"):
        refuse_sizes(7, range(2, 4), 0)


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=5),
    st.integers(1, 4),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([0.0, 1.0, 8.0]),
)
def test_workers_of_a_range_never_fill_a_machine(
    cpus: list[int], num_threads: int, least: int, more: int, gpus: float
) -> None:
    """Whichever machines are left, and however many workers Ray Train then counts on them."""
    device, most = "cuda" if gpus else "cpu", least + more
    size = cluster(*map(float, cpus), gpus=gpus)
    if gpus and gpus * len(cpus) < least:
        with pytest.raises(ResourceError, match=f"GPUs: {least} workers"):
            plan_worker_cpus(num_threads, least, most, device, size)
        return
    share = plan_worker_cpus(num_threads, least, most, device, size)
    assert 0 < share <= (1 if gpus else num_threads)
    counts = [num_workers_on(node, share, most, device) for node in size.nodes]
    assert sum(counts) >= least
    for (node_cpus, _), count in zip(size.nodes, counts, strict=True):
        assert (count * share) // share == count
        assert not count or node_cpus - count * share >= TASK_CPUS


def test_shares_of_some_machines() -> None:
    assert plan_worker_cpus(1, 2, 2, "cpu", cluster(2.0)) == 0.75
    assert plan_worker_cpus(1, 1, 2, "cpu", cluster(2.0)) == 0.75
    assert plan_worker_cpus(1, 1, 2, "cpu", cluster(0.0, 1.0, 1.0)) == 0.75
    assert plan_worker_cpus(1, 2, 4, "cpu", cluster(4.0)) == 0.875
    assert plan_worker_cpus(8, 2, 16, "cuda", cluster(16.0, 16.0, gpus=8.0)) == 1.0
    with pytest.raises(ResourceError, match=r"GPUs: 4 workers x 1 = 4, but the cluster has 2"):
        plan_worker_cpus(1, 4, 8, "cuda", cluster(16.0, gpus=2.0))
    with pytest.raises(ResourceError, match=r"machines have 1[.] Use a smaller --how"):
        plan_worker_cpus(1, 40, 80, "cpu", cluster(1.0))


def test_workers_of_any_number_in_the_range_consume_the_same_batches(tmp_path: Path) -> None:
    """The group changes its size twice; together the parts are the plan, in order."""
    samples = write_samples(tmp_path / "samples", model_digest="m")
    plan = PlanSettings(seed=3, global_batch_size=8)
    work = train_work(samples, write_models(tmp_path / "models").base, tmp_path, min_workers=1)
    work = dataclasses.replace(work, ingest=dataclasses.replace(work.ingest, plan=plan))

    def ids(num_workers: int, start: int, stop: int) -> list[list[str]]:
        own = work.for_workers(num_workers)
        config = deepspeed_config(zero_settings(own), num_workers)
        assert config["train_batch_size"] == 8
        assert config["train_micro_batch_size_per_gpu"] == 2
        ranks: list[list[RankStep]] = [
            list(itertools.islice(local_steps(own.ingest, start=start, rank=rank), stop - start))
            for rank in range(num_workers)
        ]
        return [
            [
                name
                for passes in zip(*(step.batches for step in steps), strict=True)
                for batch in passes
                for name in batch.ids
            ]
            for steps in zip(*ranks, strict=True)
        ]

    assert ids(4, 0, 3) + ids(2, 3, 5) + ids(1, 5, 9) + ids(4, 9, 10) == ids(1, 0, 10)
