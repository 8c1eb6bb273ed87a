"""The jobs by name, and what a job module offers.

A job is the module ``jobs/<name>.py`` with ``run(config) -> Summary``, and ``plan(config) -> Plan``
if it has a plan to show; and a ``@config`` class, in the same module or, where that imports heavy
libraries, in one of its own. This table holds names, not modules: ``sdxl --help`` imports no job,
and a wrong flag is answered before torch or Ray are loaded.
"""

import dataclasses
import importlib
import json
from types import ModuleType
from typing import Any, Protocol


class Summary(Protocol):
    """What ``run`` returns: counts and places, never data."""

    @property
    def exit_code(self) -> int:
        """0: all rows fine; 3: finished, and some rows failed."""
        ...

    def to_json(self) -> str:
        """One line of JSON, the last line that the command prints on stdout."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``plan`` returns and ``--plan`` shows: the work that ``run`` would do."""

    lines: tuple[str, ...]
    values: dict[str, Any]

    def describe(self) -> str:
        """For people: sources, stages, shapes, resources."""
        return "\n".join(self.lines)

    def to_json(self) -> str:
        """One line of JSON, as for ``Summary``."""
        return json.dumps(self.values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Where a job is: its module, its config as ``module:Class``, and one line of help."""

    module: str
    config: str
    help: str
    has_plan: bool = False

    def load_config(self) -> type[Any]:
        """Imports the config class."""
        module_name, class_name = self.config.split(":")
        config_type: type[Any] = getattr(importlib.import_module(module_name), class_name)
        return config_type

    def load(self) -> ModuleType:
        """Imports the job."""
        return importlib.import_module(self.module)


JOBS = {
    "prepare": Job(
        module="jobs.prepare",
        config="jobs.prepare_config:PrepareConfig",
        help="turn image-text data into aspect buckets, every row counted",
        has_plan=True,
    ),
    "train": Job(
        module="jobs.train",
        config="jobs.train_config:TrainConfig",
        help="train a base or a refiner on prepared samples, exactly resumable",
        has_plan=True,
    ),
    "generate": Job(
        module="jobs.generate",
        config="jobs.generate_config:GenerateConfig",
        help="turn a prompt table into images, every row exactly once",
        has_plan=True,
    ),
    "export": Job(
        module="jobs.export",
        config="jobs.export:ExportConfig",
        help="write a model in another layout or precision",
    ),
    "fsck": Job(
        module="jobs.fsck",
        config="jobs.fsck:FsckConfig",
        help="check that every part of an output is there and intact",
    ),
    "verify": Job(
        module="jobs.verify",
        config="jobs.verify_config:VerifyConfig",
        help="check that every row is there once, and that sampled rows come out the same again",
    ),
}
