"""Processes that run no network do not wait for the libraries of networks.

A job starts a process for every worker, and each library takes seconds of its start.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NETWORK_LIBRARIES = {"diffusers", "open_clip", "timm", "torchvision", "transformers"}


@pytest.mark.parametrize(
    ("modules", "spared"),
    [
        pytest.param(
            "jobs.__main__ jobs.generate_config jobs.prepare_config",
            {"ray", "torch"},
            id="command line",
        ),
        pytest.param("cluster.survey_task", {"ray.data", "torch"}, id="survey task"),
        pytest.param("jobs.generate jobs.prepare", {"torch._dynamo"}, id="driver"),
        pytest.param(
            "cluster.prepare_stage cluster.prepare_count cluster.prepare_finish",
            {"ray.data", "torch._dynamo"},
            id="tasks of prepare",
        ),
        pytest.param(
            "cluster.encode_prompts cluster.denoise cluster.write_images cluster.calibration",
            {"ray.data", "torch._dynamo"},
            id="workers before they load a network",
        ),
    ],
)
def test_process_without_a_network_imports_no_network_library(
    modules: str, spared: set[str]
) -> None:
    code = f"import sys, {', '.join(modules.split())}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) & (NETWORK_LIBRARIES | spared) == set()
