"""The jobs by name, and what a job module offers.

A job is the module ``jobs/<name>.py`` with a ``@config`` class and ``run(config) -> Summary``; it
may offer ``plan(config) -> Plan`` too, and then the command has ``--plan``. This table holds names,
not modules, so that ``sdxl --help`` imports none of them.
"""

import dataclasses
import importlib
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


class Plan(Protocol):
    """What ``plan`` returns: the work that ``run`` would do."""

    def describe(self) -> str:
        """For people: sources, stages, shapes, resources."""
        ...

    def to_json(self) -> str:
        """One line of JSON, as for ``Summary``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Where a job is: the name of its module and of its config, and one line of help."""

    module: str
    config: str
    help: str

    def load(self) -> tuple[ModuleType, type[Any]]:
        """Imports the job: its module and its config class."""
        module = importlib.import_module(self.module)
        return module, getattr(module, self.config)


JOBS = {
    "export": Job(
        module="jobs.export",
        config="ExportConfig",
        help="write a model in another layout or precision",
    ),
    "fsck": Job(
        module="jobs.fsck",
        config="FsckConfig",
        help="check that every part of an output is there and intact",
    ),
}
