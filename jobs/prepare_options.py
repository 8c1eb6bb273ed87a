"""From the settings of ``sdxl prepare`` to what the core makes samples with."""

from collections.abc import Mapping
from typing import Any

from cluster.prepare_work import PrepareWork
from jobs.prepare_config import PrepareConfig, parse_limits
from sdxl_core.contract.errors import ConfigError
from sdxl_core.data.buckets import (
    SDXL_BUCKETS,
    TINY_BUCKETS,
    Bucket,
    generate_buckets,
    parse_area,
)
from sdxl_core.data.filters import SampleFilters
from sdxl_core.data.sample_maker import PictureOptions
from sdxl_core.storage.source_plan import SourcePlan, plan_sources
from sdxl_core.storage.stores import open_store

_STEPS_PX = {"sdxl": 64, "tiny": 8}


def find_sources(config: PrepareConfig) -> SourcePlan:
    """All slices of all sources.

    Raises:
        ConfigError: if there is nothing usable, or a source and the output lie one in the other.
        SchemaError: if a table has no such columns.
    """
    sources = plan_sources(
        config.urls,
        kind=config.kind,
        image_column=config.image_column,
        uri_column=config.uri_column,
        caption_column=config.caption_column,
        caption_key=config.caption_key,
        rows_per_slice=config.rows_per_slice,
        retries=config.how.retries,
        timeout_s=config.how.timeout_s,
    )
    _refuse_nested(config.out, sources)
    return sources


def _refuse_nested(out: str, sources: SourcePlan) -> None:
    place = open_store(out).url + "/"
    for source in sources.sources:
        url = source.url.rstrip("/") + "/"
        if place.startswith(url) or url.startswith(place):
            raise ConfigError(
                f"{out}: OUT and the source {source.url} lie one inside the other, so that files "
                "of the one would be taken for files of the other; give an OUT of its own"
            )


def work_of(
    config: PrepareConfig, sources: SourcePlan, merged: Mapping[Bucket, Bucket] | None = None
) -> PrepareWork:
    """What the workers have to know."""
    return PrepareWork(
        out=config.out,
        sources=sources,
        options=picture_options(config, merged or {}),
        output_format=config.format,
        max_attempts=config.how.max_attempts,
        retries=config.how.retries,
        timeout_s=config.how.timeout_s,
    )


def picture_options(config: PrepareConfig, merged: Mapping[Bucket, Bucket]) -> PictureOptions:
    """What samples are made of.

    Raises:
        ConfigError: if no bucket fits an area.
    """
    return PictureOptions(
        stages=bucket_stages(config),
        merged=merged,
        filters=SampleFilters(
            min_side_px=config.min_side_px,
            max_aspect=config.max_aspect,
            max_upscale=config.max_upscale,
            max_pixels=config.max_pixels,
            min_caption_characters=config.min_caption_characters,
            max_caption_characters=config.max_caption_characters,
            minima=parse_limits("min", config.min),
            maxima=parse_limits("max", config.max),
        ),
        crop=config.crop,
        num_crops=config.crops,
        flip_probability=config.flip,
        seed=config.seed,
        image_format=config.image_format,
        scorer=config.scorer,
    )


def bucket_stages(config: PrepareConfig) -> tuple[tuple[Bucket, ...], ...]:
    """The lists of buckets, by falling area.

    Raises:
        ConfigError: if no bucket fits an area.
    """
    step_px = config.step or _STEPS_PX[config.preset]
    first: tuple[Bucket, ...] = SDXL_BUCKETS if config.preset == "sdxl" else TINY_BUCKETS
    if config.area:
        first = generate_buckets(parse_area(config.area), step_px)
    smaller = (generate_buckets(parse_area(area), step_px) for area in config.multi_scale)
    return (first, *smaller)


def source_lines(sources: SourcePlan) -> list[dict[str, Any]]:
    """The sources as plain values: what they are and how much each is to count."""
    return [
        {
            "url": source.url,
            "kind": source.kind,
            "weight": source.weight,
            "num_slices": source.num_slices,
        }
        for source in sources.sources
    ]
