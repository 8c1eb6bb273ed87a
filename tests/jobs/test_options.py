"""Every setting of every job, in a file under version control: a changed option shows in a review.

After a change that is meant: ``python -m tests.jobs.test_options > tests/jobs/options.txt``
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.registry import JOBS
from sdxl_core.contract.config import options

RECORDED = Path(__file__).parent / "options.txt"


def option_lines() -> Iterator[str]:
    for job_name, job in JOBS.items():
        for option in options(job.load_config(), f"{job_name}."):
            default = f" = {option.default}" if option.default else ""
            yield f"{option.name}: {option.type}{default}"


def test_options_of_all_jobs_are_those_recorded() -> None:
    assert list(option_lines()) == RECORDED.read_text().splitlines(), __doc__


@pytest.mark.parametrize("name", list(JOBS))
def test_job_module_follows_the_convention(name: str) -> None:
    job, config_type = JOBS[name], JOBS[name].load_config()
    assert job.module == f"jobs.{name}"
    assert config_type.__name__ == f"{name.capitalize()}Config"
    assert config_type.__dataclass_params__.frozen
    assert config_type.__pydantic_config__ == {"extra": "forbid"}
    # Read, not imported: that would load torch and Ray for nothing.
    source = Path(str(importlib.util.find_spec(job.module).origin)).read_text()
    functions = {n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    assert "run" in functions
    assert ("plan" in functions) == job.has_plan


@pytest.mark.parametrize("name", list(JOBS))
def test_none_is_the_default_of_every_option_that_may_be_none(name: str) -> None:
    """TOML cannot say None, so a setting that is None is left out of a recipe."""
    for option in options(JOBS[name].load_config()):
        if option.type.endswith("| None"):
            assert option.default == "None", option.name


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in option_lines())
