import dataclasses

import pytest

from cluster.resources import ClusterSize, Flops, PoolPlan, PoolWish, plan_pools
from sdxl_core.contract.errors import ResourceError

# Base and refiner at the released sizes: 80 % of the steps at 13.5 TFLOP, 20 % at 7.8 TFLOP.
SDXL = Flops(base=3.46e15, refiner=1e15, decode=2e13, encode=1e12)


def pools(
    flops: Flops = SDXL,
    *,
    gpus: float = 0,
    cpus: float = 64,
    memory_gb: float = 100,
    **wish: int,
) -> PoolPlan:
    return plan_pools(
        flops,
        ClusterSize(num_cpus=cpus, num_gpus=gpus, memory_bytes=memory_gb * 1e9),
        PoolWish(**wish),
        device="cuda" if gpus else "cpu",
        num_threads=1,
        denoiser_bytes=5e9,
    )


def test_pools_eight_gpus_are_split_as_the_work_is() -> None:
    plan = pools(gpus=8)
    assert (plan.num_denoisers, plan.num_refiners) == (6, 2)
    assert "3.46 : 1" in plan.describe()


@pytest.mark.parametrize("num_gpus", [1, 2, 3])
def test_pools_few_gpus_hold_both_networks(num_gpus: int) -> None:
    plan = pools(gpus=num_gpus)
    assert (plan.num_denoisers, plan.num_refiners) == (num_gpus, 0)


def test_pools_without_refined_rows_have_no_refiner() -> None:
    plan = pools(dataclasses.replace(SDXL, refiner=0.0), gpus=8)
    assert (plan.num_denoisers, plan.num_refiners) == (8, 0)
    assert "no row uses the refiner" in plan.describe()


@pytest.mark.parametrize("num_gpus", range(1, 33))
def test_pools_always_fit_on_their_cluster(num_gpus: int) -> None:
    plan = pools(gpus=num_gpus)
    encoder, denoiser, writer = plan.gpus
    num_denoisers = plan.num_denoisers + plan.num_refiners
    assert num_denoisers == num_gpus
    used = plan.num_encoders * encoder + num_denoisers * denoiser + plan.num_writers * writer
    assert used <= num_gpus + 1e-6


@pytest.mark.parametrize("num_cpus", [1, 2, 4, 7, 16, 64])
def test_pools_on_cpus_leave_room_for_the_light_workers(num_cpus: int) -> None:
    plan = pools(cpus=num_cpus, memory_gb=1000)
    num_denoisers = plan.num_denoisers + plan.num_refiners
    used = 0.1 * (plan.num_encoders + plan.num_writers) + num_denoisers * plan.denoiser_cpus
    assert used <= num_cpus + 1e-6


def test_pools_wishes_are_obeyed() -> None:
    plan = pools(gpus=8, num_denoisers=3, num_refiners=1, num_encoders=2, num_writers=4)
    assert (plan.num_denoisers, plan.num_refiners) == (3, 1)
    assert (plan.num_encoders, plan.num_writers) == (2, 4)


def test_pools_more_gpu_workers_than_gpus_are_refused_with_the_sum() -> None:
    with pytest.raises(ResourceError, match=r"GPUs: 1 x 0\.05 \+ 4 x 0\.8 .* = .*cluster has 2"):
        pools(gpus=2, num_denoisers=4)


def test_pools_more_workers_than_cpus_are_refused_with_the_sum() -> None:
    with pytest.raises(ResourceError, match=r"CPUs: 1 encoders x 0\.1 \+ 40 denoisers"):
        pools(cpus=1, num_denoisers=40)


def test_pools_weights_beyond_the_memory_are_refused_with_the_sum() -> None:
    with pytest.raises(ResourceError, match=r"64 denoisers x 5\.0 GB of weights = 320\.0 GB"):
        pools(cpus=64, num_denoisers=64)
