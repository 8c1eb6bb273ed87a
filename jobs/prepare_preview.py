"""What ``sdxl prepare --plan`` says: rows counted, and the headers of some of them looked at."""

import dataclasses
from typing import Any

from jobs.registry import Plan
from sdxl_core.storage.sample_report import warnings_of
from sdxl_core.storage.sample_totals import SampleTotals
from sdxl_core.storage.source_plan import SourcePlan


def preview(
    sources: SourcePlan,
    totals: SampleTotals,
    *,
    num_rows: int,
    share_seen: float,
    least_per_bucket: int,
) -> Plan:
    """Puts counts into words.

    Args:
        sources: All of them.
        totals: Of the rows whose headers were looked at.
        num_rows: Of all sources, counted.
        share_seen: Of the rows, in ``totals``.
        least_per_bucket: Samples that fill a batch.
    """
    scaled = _scaled(totals, share_seen)
    about = "" if share_seen == 1 else "about "
    warnings = warnings_of(scaled, least_per_bucket=least_per_bucket)
    lines = [
        f"rows: {num_rows} in {sources.num_slices} slices",
        *(f"  {source.url}: {source.kind}, weight {source.weight:g}" for source in sources.sources),
        f"headers of {totals.num_source_rows} rows ({share_seen:.1%}) looked at; pictures whose "
        "damage shows only when they are decoded, and duplicates, are counted as samples",
        f"samples: {about}{scaled.num_samples} in {len(scaled.num_by_bucket)} buckets, "
        f"{totals.num_upscaled / max(1, totals.num_samples):.1%} of them enlarged",
        *(f"  {name}: {about}{num}" for name, num in scaled.num_by_bucket.items()),
        f"rejected: {about}{scaled.num_rejected}",
        *(f"  {reason}: {about}{num}" for reason, num in scaled.num_by_reason.items()),
        *(f"warning: {warning}" for warning in warnings),
    ]
    values = {
        "num_rows": num_rows,
        "num_slices": sources.num_slices,
        "share_seen": round(share_seen, 6),
        "num_samples": scaled.num_samples,
        "num_rejected": scaled.num_rejected,
        "num_by_bucket": scaled.num_by_bucket,
        "num_by_reason": scaled.num_by_reason,
        "warnings": warnings,
    }
    return Plan(lines=tuple(lines), values=values)


def _scaled(totals: SampleTotals, share_seen: float) -> SampleTotals:
    """Counts of all rows as far as some tell; histograms and shares stay those of some."""
    if not share_seen or share_seen == 1:
        return totals

    def scale(value: Any) -> Any:
        if isinstance(value, int):
            return round(value / share_seen)
        return {name: round(num / share_seen) for name, num in value.items()}

    fields = {name: scale(value) for name, value in vars(totals).items() if name != "histograms"}
    return dataclasses.replace(totals, **fields)
