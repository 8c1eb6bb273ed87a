"""Settings and summary of ``sdxl prepare``; what they do is in ``jobs.prepare``."""

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Annotated, Literal

import tyro

from sdxl_core.contract.config import NOT_WHAT, Location, config
from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import parse_area

# As in storage.staging_layout, whose import would keep the command line waiting.
MAX_GROUP_BYTES = 3 << 29

_Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
_Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@config
class PrepareHow:
    """How the work is spread. Changes nothing that is produced, and may change between resumes."""

    address: str | None = None
    """Ray cluster; None takes RAY_ADDRESS, or starts Ray on this machine."""
    tasks: int = 0
    """Slices that are worked on at the same time; 0 takes one for each CPU."""
    encoders: int = 0
    """Workers that encode latents; 0 takes one for each GPU, or as many as the CPUs hold."""
    max_failed_share: float = 0.05
    """The job stops when more than this share of rows is damaged, once 100 rows are done."""
    max_attempts: int = 6
    """The job stops when the worker of one slice has died this often."""
    retries: int = 6
    """Tries of one storage operation that may succeed later."""
    timeout_s: float = 30.0
    """Of one storage operation."""
    no_progress_timeout_s: float = 600.0
    """The job stops when nothing has moved for so long."""
    batch_size: int = 64
    """The report points out buckets with fewer samples than this."""
    plan_rows: int = 10_000
    """Rows whose headers --plan looks at, about."""


@config
class PrepareConfig:
    """Turn image-text data into aspect buckets, nothing lost, nothing mislabelled."""

    source: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """WebDataset tars, a table or a folder of pictures; file, folder or glob; local or s3://. A
    local .toml file lists several sources."""
    out: Annotated[Location, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Directory of the samples dataset; local or s3://."""
    also: Annotated[tuple[str, ...], NOT_WHAT, tyro.conf.UseAppendAction] = ()
    """One more source; may be given again. URL@2.5 gives a source a weight, which is recorded."""
    kind: Literal["auto", "webdataset", "table", "folder"] = "auto"
    """What the sources are; auto looks at the names of files."""
    image_column: str | None = None
    """Column of a table that holds image files; found by its name if not given."""
    uri_column: str | None = None
    """Column of a table that holds paths or s3:// URLs of image files, likewise."""
    caption_column: str | None = None
    """Column of a table that holds a caption or a list of captions, likewise."""
    caption_key: str = "caption"
    """Key of the JSON beside an image that holds the caption, where there is no caption file."""

    preset: Literal["sdxl", "tiny"] = "sdxl"
    """Buckets: the 40 of the SDXL paper, or the same divided by 8 for the embedded model."""
    area: str | None = None
    """Make buckets of this area instead: height x width, such as 512x512."""
    step: int = 0
    """Sides of made buckets are multiples of this; 0 takes 64, or 8 with the preset tiny."""
    multi_scale: _Repeated = ()
    """One more, smaller area, for pictures that larger ones would enlarge; may be given again."""
    merge_thin: int = 0
    """Put buckets with fewer samples into the nearest one; reads the source once more."""
    max_upscale: float = 4.0
    """Reject pictures that would be enlarged more than this; 1 allows no enlarging."""
    crop: Literal["random", "center"] = "random"
    """Where a sample is cut out of the resized picture; random depends on seed and id alone."""
    crops: int = 1
    """Samples of each row, each with a crop of its own; their ids are ID#0, ID#1, ..."""
    flip: float = 0.0
    """Share of samples that are mirrored left to right."""

    min_side_px: int = 1
    """Reject pictures whose shorter side is less."""
    max_aspect: float = 8.0
    """Reject pictures whose longer side is more than this many shorter ones."""
    max_pixels: int = 128 << 20
    """Reject pictures with more pixels; they are not decoded."""
    min_caption_characters: int = 1
    """Drop shorter captions, and reject rows without another; 0 takes rows without a caption."""
    max_caption_characters: int | None = None
    """Drop longer captions, and reject rows without another."""
    min: _Repeated = ()
    """KEY=VALUE: reject rows whose number of this name is less; may be given again."""
    max: _Repeated = ()
    """KEY=VALUE: reject rows whose number of this name is more; may be given again."""
    scorer: str | None = None
    """PACKAGE.MODULE:FUNCTION that gives pictures without an aesthetic score one; see the docs."""
    keep_exact_duplicates: _Flag = False
    """Keep rows that have the very image file of another row."""
    near_duplicates: int | None = None
    """Reject pictures that look like another: hashes at most so many of 64 bits apart, up to 8."""

    format: Literal["parquet", "webdataset"] = "parquet"
    """Parquet files or tars for each bucket."""
    image_format: Literal["jpeg", "png", "webp"] = "jpeg"
    """jpeg is quality 95 without subsampling; png and webp are lossless."""
    latents: _Flag = False
    """Store the autoencoder's mean and log-variance in place of pictures."""
    text: _Flag = False
    """With --latents: store the text encoders' output for each caption too; it is large."""
    model: Location = "auto"
    """For --latents: tiny, diffusers folder or .safetensors file; auto is tiny for preset tiny."""
    vae_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the autoencoder."""
    latents_dtype: Literal["float16", "float32"] = "float16"
    """Precision in which latents and text are stored."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto is cuda when the cluster has GPUs."""
    cpu_threads: int = 1
    """Torch threads of each encoder on the CPU."""
    encode_batch: int = 8
    """Pictures of one size in one call of the autoencoder."""

    seed: int = 0
    """Of crops, flips and the order of the samples."""
    rows_per_slice: int = 2048
    """Rows of tables and folders that are worked on and committed together; a tar stays whole."""
    group_bytes: int = 1 << 30
    """Pictures that are shuffled and written together: more memory, better order, larger parts."""
    how: PrepareHow = PrepareHow()

    def __post_init__(self) -> None:
        for name in ("crops", "rows_per_slice", "encode_batch", "cpu_threads", "group_bytes"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("step", "merge_thin", "min_side_px", "min_caption_characters"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _check("flip", self.flip, 0 <= self.flip <= 1, "0 to 1")
        _check("max_upscale", self.max_upscale, self.max_upscale > 0, "more than 0")
        _check("max_aspect", self.max_aspect, self.max_aspect >= 1, "1 or more")
        fits = self.group_bytes <= MAX_GROUP_BYTES
        _check("group_bytes", self.group_bytes, fits, f"at most {MAX_GROUP_BYTES}")
        distance = self.near_duplicates
        _check("near_duplicates", distance, distance is None or 0 <= distance <= 8, "0 to 8")
        if distance is not None and self.keep_exact_duplicates:
            raise ConfigError(
                "near_duplicates: equal files look alike as well; leave out --near-duplicates, or "
                "--keep-exact-duplicates"
            )
        share = self.how.max_failed_share
        _check("how.max_failed_share", share, 0 <= share <= 1, "0 to 1")
        if self.step and not (self.area or self.multi_scale):
            raise ConfigError("step: is for made buckets; give --area or --multi-scale as well")
        areas = [parse_area(text) for text in (self.area, *self.multi_scale) if text]
        if sorted(set(areas), reverse=True) != areas:
            raise ConfigError(f"multi_scale: found {self.multi_scale}, expected falling areas")
        parse_limits("min", self.min), parse_limits("max", self.max)
        if self.text and not self.latents:
            raise ConfigError("text: is stored beside latents; give --latents as well")
        if self.latents and self.model == "auto" and self.preset != "tiny":
            raise ConfigError("latents: give the model whose autoencoder encodes, --model DIR")

    @property
    def urls(self) -> tuple[str, ...]:
        """All sources."""
        return (self.source, *self.also)

    @property
    def model_path(self) -> str:
        """Where the model is."""
        return "tiny" if self.model == "auto" else self.model


def parse_limits(name: str, texts: Iterable[str]) -> dict[str, float]:
    """``KEY=VALUE`` texts as numbers by key.

    Raises:
        ConfigError: if one is not such a text.
    """
    limits: dict[str, float] = {}
    for text in texts:
        key, separator, value = text.rpartition("=")
        try:
            limits[key] = float(value)
        except ValueError:
            separator = ""
        if not key or not separator or not math.isfinite(limits[key]):
            raise ConfigError(f"{name}: found {text!r}, expected KEY=NUMBER, such as aesthetic=5")
    return limits


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareSummary:
    """What became of the rows: ``num_rows`` = rows with samples + ``num_rejected``.

    ``num_failed`` counts the rejected rows that no filter asked for: damaged files, missing
    pictures or captions, members of archives that cannot be used.
    """

    out: str
    num_rows: int
    num_samples: int
    num_rejected: int
    num_failed: int
    num_by_reason: dict[str, int]
    num_buckets: int
    num_parts: int
    num_parts_made_now: int
    seconds: float
    rows_per_s: float
    fingerprint: str
    report: str
    model_digest: str = ""

    @property
    def exit_code(self) -> int:
        """0: every row is a sample or was filtered out as asked; 3: some were damaged."""
        return 3 if self.num_failed else 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self))


def _check(name: str, found: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ConfigError(f"{name}: found {found}, expected {expected}")
