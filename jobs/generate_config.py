"""Settings and summary of ``sdxl generate``; what they do is in ``jobs.generate``."""

import dataclasses
import json
from typing import Annotated, Literal

import tyro

from sdxl_core.contract.config import NOT_WHAT, Location, config
from sdxl_core.contract.errors import ConfigError
from sdxl_core.contract.request import PromptDefaults


@config
class GenerateHow:
    """How the work is spread. Changes nothing that is produced, and may change between resumes."""

    address: str | None = None
    """Ray cluster; None takes RAY_ADDRESS, or starts Ray on this machine."""
    denoisers: int = 0
    """Workers that run the base (and the refiner, if they share); 0 decides from the plan."""
    refiners: int = 0
    """Workers that run the refiner only; with denoisers 0 the plan decides."""
    encoders: int = 0
    """Workers that encode prompts; 0 decides."""
    writers: int = 0
    """Workers that decode, encode and write images; 0 decides."""
    parts_in_flight: int = 3
    """Parts that one denoiser works on at the same time; more keep its slots fuller."""
    max_failed_share: float = 0.05
    """The job stops when more than this share of rows has failed, once 100 rows are done."""
    max_attempts: int = 6
    """A part whose worker died this often is failed instead of tried again."""
    retries: int = 6
    """Tries of one storage operation that may succeed later."""
    timeout_s: float = 30.0
    """Of one storage operation."""
    no_progress_timeout_s: float = 600.0
    """The job stops when nothing has moved for so long."""
    gallery_rows: int = 2000
    """Images in gallery.html; 0 writes no gallery."""


@config
class GenerateConfig:
    """Turn a prompt table into images, every row exactly once."""

    prompts: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPTS")]
    """Prompt table: parquet, CSV or JSONL; file, folder or glob; local or s3://."""
    out: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Directory of the images dataset; local or s3://."""
    model: Location = "tiny"
    """Base model: tiny (embedded), diffusers folder or .safetensors file; local or s3://."""
    refiner: Location = "auto"
    """Refiner, likewise; none has none; auto pairs tiny with its own and is none elsewhere."""
    variant: str | None = None
    """Read files of this variant of a diffusers folder, for example fp16."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision of the UNets and the text encoders."""
    vae_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the autoencoder; auto is dtype, or float32 where that would overflow."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto is cuda when the cluster has GPUs."""
    numerics: Literal["exact", "fast"] = "exact"
    """exact: a row's bits never depend on other rows; fast: fewer padded places at the tail."""
    slots: int = 0
    """Rows in one network call, a power of two up to 64; 0 decides per shape from the table."""
    cpu_threads: int = 1
    """Torch threads of each worker on the CPU; more change the last digits."""
    seed: int = 0
    """Seeds rows that bring none: hash of this and the row's id."""
    timestep_spacing: Literal["model", "leading", "trailing", "linspace"] = "model"
    """Spacing of timesteps; model takes what the model's files say."""
    format: Literal["files", "parquet", "webdataset", "dry"] = "files"
    """Where images go: single files, the table itself, tars, or nowhere (dry)."""
    image_format: Literal["png", "webp", "jpeg"] = "png"
    """png and webp are lossless."""
    rows_per_part: int = 0
    """Rows that are committed together; 0 takes 64, or fewer for a small table."""
    retry_failed: Annotated[bool, NOT_WHAT, tyro.conf.FlagCreatePairsOff] = False
    """Open finished parts again for the rows in them that failed."""
    defaults: PromptDefaults = PromptDefaults()
    """What rows get in columns that the table lacks; a size of None is the model's own."""
    how: GenerateHow = GenerateHow()

    def __post_init__(self) -> None:
        if self.rows_per_part < 0:
            raise ConfigError(
                f"rows_per_part: found {self.rows_per_part}, expected 1 or more, or 0"
            )
        if self.cpu_threads < 1:
            raise ConfigError(f"cpu_threads: found {self.cpu_threads}, expected at least 1")
        if not 0 <= self.how.max_failed_share <= 1:
            raise ConfigError(
                f"how.max_failed_share: found {self.how.max_failed_share}, expected 0 to 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateSummary:
    """What became of the rows."""

    out: str
    num_rows: int
    num_ok: int
    num_failed: int
    num_by_reason: dict[str, int]
    num_parts: int
    num_parts_made_now: int
    seconds: float
    images_per_s: float
    fingerprint: str
    gallery: str | None = None

    @property
    def exit_code(self) -> int:
        """0: all rows fine; 3: some failed."""
        return 3 if self.num_failed else 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))
