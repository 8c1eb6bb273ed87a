"""One row of a source becomes its samples, or the rejection that says why not.

Pure: bytes in, bytes out. Called for every row by the stage tasks of ``cluster``; the same row and
options give the same samples wherever and whenever it runs.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdxl_core.contract.errors import ConfigError, RowError
from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.contract.samples import RawSample, Rejection, Sample, reject
from sdxl_core.data.buckets import SDXL_BUCKETS, Bucket, choose_bucket, cover_scale
from sdxl_core.data.decoding import cut_sample, decode_resized
from sdxl_core.data.duplicates import perceptual_hash
from sdxl_core.data.filters import (
    AESTHETIC_KEY,
    Refusal,
    SampleFilters,
    judge_metadata,
    judge_size,
    judge_upscale,
    usable_captions,
)
from sdxl_core.data.geometry import CropMode, Geometry, covering_size, plan_geometry
from sdxl_core.data.headers import read_header
from sdxl_core.data.picture_files import PictureError, PictureHeader
from sdxl_core.data.scorers import picture_score
from sdxl_core.storage.image_files import ImageFormat, encode_image

# A picture far longer than its bucket would be enlarged to something huge and then cropped away.
_MAX_RESIZED_TO_BUCKET = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What samples are made of.

    Args:
        stages: lists of buckets by falling area; one list unless small pictures are to stay small.
        merged: buckets that are too thin, and which one to use for each.
        filters: what a row must be.
        crop: where the sample is cut.
        num_crops: samples of one row, at least 1; each has a place of its own.
        flip_probability: share of samples that are mirrored.
        seed: of crops and flips.
        image_format: what samples are encoded as; ``jpeg`` is quality 95 without subsampling.
        aesthetic_keys: of the metadata; the first that holds a number is the aesthetic score.
        scorer: ``package.module:function`` that scores pictures without one, see ``scorers``.
    """

    stages: Sequence[Sequence[Bucket]] = (SDXL_BUCKETS,)
    merged: Mapping[Bucket, Bucket] = dataclasses.field(default_factory=dict)
    filters: SampleFilters = dataclasses.field(default_factory=SampleFilters)
    crop: CropMode = "random"
    num_crops: int = 1
    flip_probability: float = 0.0
    seed: int = 0
    image_format: ImageFormat = "jpeg"
    aesthetic_keys: Sequence[str] = (AESTHETIC_KEY, "aesthetic_score", "AESTHETIC_SCORE")
    scorer: str | None = None

    def __post_init__(self) -> None:
        if self.num_crops < 1 or not 0 <= self.flip_probability <= 1:
            raise ConfigError(
                f"pictures: found {self.num_crops} crops and a flip probability of "
                f"{self.flip_probability}, expected at least 1 and a number from 0 to 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a row's picture would become, by its header alone."""

    header: PictureHeader
    bucket: Bucket
    upscale: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """A row that will be samples unless its picture is damaged: usable captions and the plan."""

    captions: tuple[str, ...]
    plan: Plan


def plan_samples(raw: RawSample, options: PictureOptions) -> PlannedRow | Rejection:
    """What becomes of a row, by its texts, its numbers and the header of its picture.

    Args:
        raw: as it was read.
        options: what to make.
    """
    refusal = raw.problem
    captions: tuple[str, ...] = ()
    if refusal is None:
        captions, refusal = usable_captions(raw.captions, options.filters)
    scored = options.scorer is not None
    refusal = refusal or judge_metadata(raw.metadata, options.filters, scored=scored)
    if refusal is not None:
        return reject(raw, *refusal)
    plan = plan_picture(raw.image, options)
    if isinstance(plan, Rejected):
        return reject(raw, *plan.refusal, original_size=plan.original_size)
    return PlannedRow(captions=captions, plan=plan)


def make_samples(raw: RawSample, options: PictureOptions) -> list[Sample] | Rejection:
    """The samples of one row, ``options.num_crops`` of them, or its rejection.

    Args:
        raw: as it was read.
        options: what to make.
    """
    planned = plan_samples(raw, options)
    if isinstance(planned, Rejection):
        return planned
    assert raw.image is not None  # or there would be no plan
    try:
        return _samples(raw, raw.image, planned.captions, planned.plan, options)
    except (PictureError, RowError) as error:
        reason = error.reason if isinstance(error, PictureError) else RejectReason.INTERNAL_ERROR
        return reject(raw, reason, error.detail, original_size=planned.plan.header.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejected:
    """Why there is no plan for a picture, and its size where that could be read."""

    refusal: Refusal
    original_size: tuple[int, int] | None = None


def plan_picture(image: bytes | None, options: PictureOptions) -> Plan | Rejected:
    """What becomes of a picture, by its header: nothing is decoded.

    Args:
        image: the file.
        options: what to make.
    """
    if image is None:
        return Rejected(refusal=(RejectReason.MISSING_IMAGE, "the row has no image"))
    try:
        header = read_header(image)
    except PictureError as error:
        return Rejected(refusal=(error.reason, error.detail))
    size = header.size
    refusal = judge_size(size, options.filters)
    if refusal is not None:
        return Rejected(refusal=refusal, original_size=size)
    bucket = choose_bucket(*size, options.stages)
    bucket = options.merged.get(bucket, bucket)
    upscale = cover_scale(*size, bucket)
    refusal = judge_upscale(size, bucket, upscale, options.filters)
    resized_size = covering_size(size, bucket)
    if refusal is None and math.prod(resized_size) > _MAX_RESIZED_TO_BUCKET * math.prod(bucket):
        refusal = (
            RejectReason.ASPECT_OUT_OF_RANGE,
            f"{size[0]} x {size[1]} px would become {resized_size[0]} x {resized_size[1]} to "
            f"cover {bucket[0]} x {bucket[1]}, and most of it would be cut away",
        )
    if refusal is not None:
        return Rejected(refusal=refusal, original_size=size)
    return Plan(header=header, bucket=bucket, upscale=upscale)


def _samples(
    raw: RawSample,
    image: bytes,
    captions: tuple[str, ...],
    plan: Plan,
    options: PictureOptions,
) -> list[Sample]:
    size = plan.header.size
    picture = decode_resized(image, plan.header, covering_size(size, plan.bucket))
    metadata = _as_json(raw.metadata)
    aesthetic = picture_score(
        raw.metadata,
        picture.rgb_HWC,
        keys=options.aesthetic_keys,
        scorer=options.scorer,
        filters=options.filters,
    )
    content_sha256 = hashlib.sha256(image).hexdigest()
    phash = perceptual_hash(picture.rgb_HWC)
    dropped = len(captions) < sum(bool(caption.strip()) for caption in raw.captions)
    notes = (*raw.notes, *picture.notes, *(["captions_dropped"] if dropped else []))
    samples = []
    for index in range(options.num_crops):
        geometry = _geometry(raw.key, size, plan.bucket, index, options)
        rgb_HWC = cut_sample(picture.rgb_HWC, geometry)
        samples.append(
            Sample(
                id=raw.key if options.num_crops == 1 else f"{raw.key}#{index}",
                row_index=raw.row_index,
                captions=captions,
                image=encode_image(rgb_HWC, image_format=options.image_format, parameters=None),
                original_height=size[0],
                original_width=size[1],
                crop_top=geometry.crop_top_left[0],
                crop_left=geometry.crop_top_left[1],
                target_height=plan.bucket[0],
                target_width=plan.bucket[1],
                flip=geometry.flip,
                source=raw.source,
                content_sha256=content_sha256,
                upscale=geometry.upscale,
                phash=phash,
                aesthetic=aesthetic,
                notes=notes,
                metadata=metadata,
            )
        )
    return samples


def _geometry(
    key: str, size: tuple[int, int], bucket: Bucket, crop_index: int, options: PictureOptions
) -> Geometry:
    return plan_geometry(
        size,
        bucket,
        crop=options.crop,
        key=key,
        seed=options.seed,
        crop_index=crop_index,
        flip_probability=options.flip_probability,
    )


def _as_json(metadata: Mapping[str, Any]) -> str:
    """One JSON object; NaN and infinity, which JSON does not know, become null."""
    return json.dumps(_plain(metadata), ensure_ascii=False, default=str, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
