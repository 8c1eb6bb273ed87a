"""Settings and summary of ``sdxl verify``; what they do is in ``jobs.verify``."""

import dataclasses
import json
from typing import Annotated

import tyro

from sdxl_core.contract.config import NOT_WHAT, Location, config
from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.integrity import DatasetCheck

HINT = (
    "Equal bits are promised on equal hardware with equal library versions only: another CPU type, "
    "torch build or GPU changes last digits. If nothing of that changed, the file was altered"
)


@config
class VerifyConfig:
    """Check that every row is there once, and that sampled rows come out the same again."""

    out: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Output directory of generate; local or s3://."""
    num_rows: int = 8
    """Rows to make again, spread over the output."""
    seed: int = 0
    """Chooses the rows."""
    checksums: bool = True
    """Read every file and compare its SHA-256; without it, compare sizes alone."""
    model: Annotated[str | None, NOT_WHAT] = None
    """Where the base is now; None takes what the run recorded."""
    refiner: Annotated[str | None, NOT_WHAT] = None
    """Where the refiner is now; likewise."""

    def __post_init__(self) -> None:
        if self.num_rows < 0:
            raise ConfigError(f"num_rows: found {self.num_rows}, expected 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifySummary:
    """What was found."""

    out: str
    check: DatasetCheck
    num_rows_made_again: int
    differences: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0: complete, intact, and all rows came out the same; else 3."""
        whole = self.check.complete and not self.check.problems
        return 0 if whole and not self.differences else 3

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(
            {
                "out": self.out,
                "complete": self.check.complete,
                "num_rows": self.check.num_rows,
                "num_by_status": self.check.num_by_status,
                "num_problems": len(self.check.problems),
                "problems": self.check.problems[:100],
                "num_rows_made_again": self.num_rows_made_again,
                "differences": self.differences,
                "hint": HINT if self.differences else None,
            }
        )
