"""Benchmarks are run seldom, some of them on a GPU alone: each can at least be imported."""

import importlib
import pkgutil

import pytest

import benchmarks


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(benchmarks.__path__)])
def test_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")
