"""A small but whole job, to test the command line with: it can end in every way."""

import dataclasses
import json
import os
import signal
import time
from typing import Annotated, Literal

import tyro

from sdxl_core.contract import errors
from sdxl_core.contract.config import Location, config


@config
class PaintHow:
    """How the work is spread."""

    slots: int = 4
    """Rows at once."""


@config
class PaintConfig:
    """Paint rows."""

    prompts: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPTS")]
    """Table of prompts."""
    out: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Where to write."""
    steps: int = 30
    """Denoising steps."""
    sampler: Literal["euler", "heun"] = "euler"
    refine: bool = True
    note: str | None = None
    end: str = "fine"
    """How the run ends: fine, some_failed, sigterm, import_ray, or the name of an error."""
    how: PaintHow = PaintHow()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise errors.ConfigError(f"steps must be >= 1, got {self.steps}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaintSummary:
    config: PaintConfig
    exit_code: int

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self.config))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaintPlan:
    config: PaintConfig

    def describe(self) -> str:
        return f"would paint {self.config.prompts}\nin {self.config.steps} steps"

    def to_json(self) -> str:
        return json.dumps({"plan": self.config.prompts})


def plan(config: PaintConfig) -> PaintPlan:
    return PaintPlan(config=config)


def run(config: PaintConfig) -> PaintSummary:
    if config.end == "import_ray":
        import ray  # it installs a SIGTERM handler of its own

        assert ray.__version__
    if config.end in ("sigterm", "import_ray"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    if config.end == "StoreError":
        raise errors.StoreError("s3://b/k: access denied", retryable=False)
    if config.end.endswith("Error"):
        raise getattr(errors, config.end)("table.csv: something is wrong")
    return PaintSummary(config=config, exit_code=3 if config.end == "some_failed" else 0)
