"""One local Ray and one pair of toy models for all tests that need them."""

from collections.abc import Iterator

import pytest
import ray

from tests.micro_models import MicroModels, write_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> MicroModels:
    """Base and refiner on disk. Shared: never write there."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray in this process, with more logical CPUs than there are: workers are light."""
    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 << 20,
    )
    try:
        yield
    finally:
        ray.shutdown()
