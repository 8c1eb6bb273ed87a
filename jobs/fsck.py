"""Checks that an output is whole: parts committed, files intact, every input row there once.

Left: the output directory of any job. Nothing is written. The exit code is 0 for an output that is
complete and intact, 3 for one that is not; the summary lists what is wrong. Files that belong to no
part are told apart, and deleted on request only (``--delete-orphans``). To run it:

    sdxl fsck out/demo
"""

import dataclasses
import json
import logging
from typing import Annotated

import tyro

from sdxl_core.contract.config import Location, config
from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.integrity import DatasetCheck, check_dataset
from sdxl_core.storage.stores import Store, open_store

logger = logging.getLogger(__name__)


@config
class FsckConfig:
    """Check that every part of an output is there and intact."""

    out: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Output directory of a job; local or s3://."""

    checksums: bool = True
    """Read every file and compare its SHA-256; without it, compare sizes alone."""

    max_problems: int = 100
    """List at most so many problems, and orphans; the number of all is always told."""

    delete_orphans: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Delete files that no part names, if the output is complete and nothing is wrong with it."""

    def __post_init__(self) -> None:
        if self.max_problems < 1:
            raise ConfigError(f"max_problems must be >= 1, got {self.max_problems}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FsckSummary:
    """What was found."""

    out: str
    check: DatasetCheck
    max_problems: int
    num_orphans_deleted: int = 0

    @property
    def exit_code(self) -> int:
        """0 for complete and intact, else 3."""
        return 0 if self.check.complete and not self.check.problems else 3

    def to_json(self) -> str:
        """One line of JSON."""
        found = dataclasses.asdict(self.check)
        found["num_problems"] = len(self.check.problems)
        found["problems"] = self.check.problems[: self.max_problems]
        found["num_orphans"] = len(self.check.orphans)
        found["orphans"] = self.check.orphans[: self.max_problems]
        found["num_orphans_deleted"] = self.num_orphans_deleted
        return json.dumps({"out": self.out, **found})


def run(config: FsckConfig) -> FsckSummary:
    """Reads all of ``config.out`` and says what is wrong with it.

    Raises:
        ConfigError: orphans are to be deleted, but the output is not complete and intact.
        SchemaError: it is not the output of a job.
        StoreError: it cannot be read.
    """
    store = open_store(config.out)
    check = check_dataset(store, checksums=config.checksums)
    for problem in check.problems[: config.max_problems]:
        logger.error("%s", problem)
    if not check.complete:
        logger.warning(
            "%s is not complete: %s of %s parts are in; the command that began it goes on",
            store.url,
            check.num_parts,
            check.num_parts_expected,
        )
    if check.orphans:
        logger.warning("%s", _orphans_text(check))
    num_deleted = _delete_orphans(store, check) if config.delete_orphans else 0
    return FsckSummary(
        out=store.url,
        check=check,
        max_problems=config.max_problems,
        num_orphans_deleted=num_deleted,
    )


def _orphans_text(check: DatasetCheck) -> str:
    return f"{len(check.orphans)} files belong to no part, the first {check.orphans[0]}. " + (
        "They do no harm; --delete-orphans deletes them"
        if check.complete
        else "A run may be at work on them; whoever makes their parts writes over them"
    )


def _delete_orphans(store: Store, check: DatasetCheck) -> int:
    """A run that is at work has no summary yet, so its files are safe."""
    if not check.complete or check.problems:
        raise ConfigError(
            f"{store.url}: --delete-orphans wants an output that is complete and without problems; "
            f"found {len(check.problems)} problems, complete: {check.complete}. Give the command "
            "that began it again first"
        )
    for path in check.orphans:
        store.delete(path)
    return len(check.orphans)
