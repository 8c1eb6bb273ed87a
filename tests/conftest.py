"""What every test can rely on: no network by accident, few threads, no deadlines."""

import os

import hypothesis
import pytest
import torch

from sdxl_core.nets.torchvision_ops import declare_missing_torchvision_ops

# Read by libraries when they are imported, and inherited by the processes that tests start.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

torch.set_num_threads(1)
declare_missing_torchvision_ops()  # tests compare with diffusers and transformers themselves

hypothesis.settings.register_profile(
    "project",
    deadline=None,
    max_examples=50,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
