"""Rows of the samples dataset to what a training step reads: arrays of one size, and one caption
and one seed for each row.

Only numpy and Arrow are at work here: this runs in many light processes beside the training.

Shapes: B rows, K captions of a row, T tokens, D text width, P pooled width, H W pixels, h w an
eighth of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sdxl_core.contract.errors import RowError, SchemaError
from sdxl_core.contract.samples import SAMPLE_IMAGE_COLUMN
from sdxl_core.contract.seeds import row_seed, sample_seed
from sdxl_core.data.buckets import Bucket

Pixels = Literal["latents", "images"]
Texts = Literal["live", "stored"]

_NUMBERS = (
    *("original_height", "original_width", "crop_top", "crop_left"),
    *("target_height", "target_width"),
)
_MOMENTS = ("moments", "moments_dtype", "moments_shape")
_STORED_TEXTS = ("text_states", "text_pooled", "text_dtype", "text_shape")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleView:
    """What of each row is read.

    Args:
        run_seed: of the training run.
        pixels: ``latents``: the autoencoder's stored moments; ``images``: pictures, to be encoded
            in training.
        texts: ``stored``: the text encoders' stored output; ``live``: captions.
        with_aesthetic: read the score as well, for a refiner.
    """

    run_seed: int
    pixels: Pixels
    texts: Texts
    with_aesthetic: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that have to be read."""
        return (
            "id",
            "captions",
            *(_MOMENTS if self.pixels == "latents" else (SAMPLE_IMAGE_COLUMN,)),
            *(_STORED_TEXTS if self.texts == "stored" else ()),
            *_NUMBERS,
            *(("aesthetic",) if self.with_aesthetic else ()),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """Rows of one bucket.

    Args:
        ids: column ``id``.
        seeds: of all that is drawn for each row.
        captions: the chosen one of each row.
        columns: numbers of each row, by column of the samples dataset.
        moments_BCHW: float16 or float32, or None.
        images_BHWC: uint8 RGB, or None.
        states_BTD: stored text states of the chosen caption, or None.
        pooled_BP: likewise.
    """

    ids: list[str]
    seeds: list[int]
    captions: list[str]
    columns: dict[str, list[float | None]]
    moments_BCHW: npt.NDArray[Any] | None = None
    images_BHWC: npt.NDArray[np.uint8] | None = None
    states_BTD: npt.NDArray[Any] | None = None
    pooled_BP: npt.NDArray[Any] | None = None


def gather_rows(units: Mapping[int, pa.Table], unit: Sequence[int], row: Sequence[int]) -> pa.Table:
    """Rows of several units, in the order wanted.

    Args:
        units: tables by number of the unit.
        unit: of each wanted row.
        row: place of each in its unit.

    Raises:
        SchemaError: a unit has fewer rows than the plan counts.
    """
    numbers = list(dict.fromkeys(unit))
    firsts, total = {}, 0
    for number in numbers:
        firsts[number] = total
        total += units[number].num_rows
    for number, place in zip(unit, row, strict=True):
        if place >= units[number].num_rows:
            raise SchemaError(
                f"unit {number} has {units[number].num_rows} samples, but number {place} is "
                "planned; the files are not those that the run was begun with"
            )
    whole = pa.concat_tables([units[number] for number in numbers])
    places = [firsts[number] + place for number, place in zip(unit, row, strict=True)]
    return whole.take(pa.array(places, pa.int64()))


def make_batch(
    rows: pa.Table, visit: Sequence[int], view: SampleView, bucket: Bucket
) -> SampleBatch:
    """What a step reads of ``rows``.

    Args:
        rows: with ``view.columns``, all of ``bucket``.
        visit: how often the run met each of them before.
        view: what of them is wanted.
        bucket: (height, width), pixels.

    Raises:
        SchemaError: a row is of another size, its moments are missing, or its picture cannot be
            decoded.
    """
    ids = rows["id"].to_pylist()
    seeds = [sample_seed(view.run_seed, int(v), i) for v, i in zip(visit, ids, strict=True)]
    captions = rows["captions"].to_pylist()
    choices = [_choice(texts, seed) for texts, seed in zip(captions, seeds, strict=True)]
    batch: dict[str, Any] = {}
    if view.pixels == "latents":
        batch["moments_BCHW"] = _moments(rows, bucket)
    else:
        batch["images_BHWC"] = _images(rows, bucket)
    if view.texts == "stored":
        batch["states_BTD"], batch["pooled_BP"] = _stored_texts(rows, choices)
    names = (*_NUMBERS, "aesthetic") if view.with_aesthetic else _NUMBERS
    return SampleBatch(
        ids=ids,
        seeds=seeds,
        captions=[texts[k] if texts else "" for texts, k in zip(captions, choices, strict=True)],
        columns={name: rows[name].to_pylist() for name in names},
        **batch,
    )


def _choice(captions: Sequence[str], seed: int) -> int:
    """Which caption a row is trained with this time; rows without any have the empty one."""
    return row_seed(seed, "caption") % len(captions) if captions else 0


def _moments(rows: pa.Table, bucket: Bucket) -> npt.NDArray[Any]:
    expected = [8, bucket[0] // 8, bucket[1] // 8]
    arrays = []
    for sample_id, data, dtype, shape in zip(
        *(rows[name].to_pylist() for name in ("id", *_MOMENTS)), strict=True
    ):
        if data is None or shape != expected:
            raise SchemaError(
                f"sample {sample_id}: moments of shape {shape}, expected {expected} in a bucket of "
                f"{bucket[0]}x{bucket[1]} px"
            )
        arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return np.stack(arrays)


def _images(rows: pa.Table, bucket: Bucket) -> npt.NDArray[np.uint8]:
    from sdxl_core.storage.image_files import decode_image

    arrays = []
    for sample_id, file in zip(
        rows["id"].to_pylist(), rows[SAMPLE_IMAGE_COLUMN].to_pylist(), strict=True
    ):
        try:
            image_HWC = decode_image(file)
        except RowError as error:
            raise SchemaError(f"sample {sample_id}: {error}; see sdxl fsck") from error
        if image_HWC.shape[:2] != bucket:
            raise SchemaError(
                f"sample {sample_id}: {image_HWC.shape[0]}x{image_HWC.shape[1]} px, expected its "
                f"bucket's {bucket[0]}x{bucket[1]}"
            )
        arrays.append(image_HWC)
    return np.stack(arrays)


def _stored_texts(
    rows: pa.Table, choices: Sequence[int]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    states, pooled = [], []
    for states_data, pooled_data, dtype, shape, chosen in zip(
        *(rows[name].to_pylist() for name in _STORED_TEXTS), choices, strict=True
    ):
        states.append(np.frombuffer(states_data, dtype).reshape(shape)[chosen])
        pooled.append(np.frombuffer(pooled_data, dtype).reshape(shape[0], -1)[chosen])
    return np.stack(states), np.stack(pooled)
