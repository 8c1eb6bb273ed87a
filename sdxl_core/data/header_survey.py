"""What rows would become, from headers alone: for ``--plan``, and to find thin buckets beforehand.

In: rows of a source. Out: totals as those of a finished part. No picture is decoded, so rows whose
damage shows only then are counted as samples.
"""

from collections.abc import Callable, Iterable

import pyarrow as pa

from sdxl_core.contract.samples import RawSample, Rejection, encodable, samples_schema
from sdxl_core.data.sample_maker import PictureOptions, PlannedRow, plan_samples
from sdxl_core.data.scorers import aesthetic_score
from sdxl_core.storage.sample_totals import (
    SampleTotals,
    add_totals,
    tally_rejected,
    tally_samples,
)

_ROWS_AT_ONCE = 4096
_FIELDS = (
    *("captions", "original_height", "original_width", "target_height", "target_width"),
    *("flip", "aesthetic", "upscale", "notes"),
)
_SCHEMA = pa.schema([samples_schema().field(name) for name in _FIELDS])


def survey_rows(
    rows: Iterable[RawSample],
    options: PictureOptions,
    judge: Callable[[RawSample], PlannedRow | Rejection] | None = None,
) -> SampleTotals:
    """Counts what ``make_samples`` would make of the rows, save for flips and notes of pictures.

    Args:
        rows: of a source.
        options: what would be made.
        judge: in place of ``plan_samples``, which may be wrapped in something that never fails.
    """
    judge = judge or (lambda raw: plan_samples(raw, options))
    totals = SampleTotals()
    planned: list[tuple[object, ...]] = []
    reasons: list[str] = []

    def flushed(totals: SampleTotals) -> SampleTotals:
        columns = list(zip(*planned, strict=True)) or [()] * len(_FIELDS)
        arrays = [pa.array(some, field.type) for some, field in zip(columns, _SCHEMA, strict=True)]
        samples = pa.Table.from_arrays(arrays, schema=_SCHEMA)
        num_rows = len(planned) // options.num_crops
        rejected = pa.table({"reason": pa.array(reasons, pa.string())})
        planned.clear()
        reasons.clear()
        more = tally_samples(samples, num_source_rows=num_rows)
        return add_totals([totals, more, tally_rejected(rejected)])

    for raw in rows:
        row = judge(raw)
        if isinstance(row, Rejection):
            reasons.append(str(row.reason))
        else:
            score = aesthetic_score(raw.metadata, options.aesthetic_keys)
            size, bucket = row.plan.header.size, row.plan.bucket
            captions = [encodable(caption) for caption in row.captions]
            fields = (captions, *size, *bucket, False, score, row.plan.upscale, raw.notes)
            planned += [fields] * options.num_crops
        if len(planned) + len(reasons) >= _ROWS_AT_ONCE:
            totals = flushed(totals)
    return flushed(totals)
