"""What is in a prepared dataset, for people and for programs: ``report.html`` and ``_report.json``.

In: totals, and the thumbnail sheets that were written. The page is static, has no script, asks
nothing of the network, and shows whatever a source holds as text. ``--plan`` uses the same with
totals of a sample of the source.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.storage.report_charts import Chart, make_chart
from sdxl_core.storage.sample_totals import HISTOGRAMS, SampleTotals, edges, totals_to_json
from sdxl_core.storage.stores import Store

REPORT_FILE = "_report.json"
REPORT_PAGE = "report.html"
REPORT_VERSION = 1

Bucket = tuple[int, int]  # height, width in pixels

_LARGE_SHARE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketLine:
    """One bucket of the page. The sides of its shape are at most 24; its bar is at most 1."""

    name: str
    num_samples: int
    share: str
    bar: float
    shape_height: float
    shape_width: float
    is_thin: bool
    sheet: str | None


def write_report(
    store: Store,
    totals: SampleTotals,
    *,
    least_per_bucket: int = 0,
    sheets: Mapping[Bucket, str] | None = None,
    share_seen: float = 1.0,
) -> list[str]:
    """Writes ``_report.json`` and ``report.html``.

    Args:
        store: the output directory.
        totals: of all parts, or of the rows that ``--plan`` looked at.
        least_per_bucket: samples that fill a batch; a bucket with fewer is called thin.
        sheets: path of the thumbnail sheet of each bucket that has one.
        share_seen: of the source's rows, above 0; below 1 the page says that it is an estimate.

    Returns:
        The warnings, a sentence each, for the log.
    """
    warnings = warnings_of(totals, least_per_bucket=least_per_bucket)
    report = {
        "report_version": REPORT_VERSION,
        "share_seen": share_seen,
        "least_per_bucket": least_per_bucket,
        "totals": totals_to_json(totals),
        "edges": {name: edges(name).tolist() for name in HISTOGRAMS},
        "warnings": warnings,
    }
    text = json.dumps(report, indent=1, sort_keys=True) + "\n"
    store.write_bytes(REPORT_FILE, text.encode())
    name = store.url.rsplit("/", 1)[-1]
    lines = bucket_lines(totals, least_per_bucket=least_per_bucket, sheets=sheets or {})
    page = _page(name, totals, lines, warnings, share_seen=share_seen)
    store.write_bytes(REPORT_PAGE, page)
    return warnings


def warnings_of(totals: SampleTotals, *, least_per_bucket: int = 0) -> list[str]:
    """What to look at before training on this, each with what can be done about it."""
    found: list[str] = []
    thin = thin_buckets(totals, least_per_bucket)
    if thin:
        names = ", ".join(f"{name} ({num})" for name, num in thin[:5])
        more = f" and {len(thin) - 5} more" if len(thin) > 5 else ""
        found.append(
            f"{len(thin)} of {len(totals.num_by_bucket)} buckets have fewer than "
            f"{least_per_bucket} samples and cannot fill a batch: {names}{more}. "
            f"--merge-thin {least_per_bucket} puts their pictures into the nearest bucket; more "
            "data, a smaller batch or fewer buckets help as well."
        )
    if totals.num_samples == 0:
        found.append("There is no sample: look at the reasons of the rejected rows.")
    elif totals.num_rejected > _LARGE_SHARE * totals.num_source_rows:
        reason, num = max(totals.num_by_reason.items(), key=lambda item: item[1])
        found.append(
            f"{_percent(totals.num_rejected, totals.num_source_rows)} of the rows are rejected, "
            f"most of them ({num:,}) as {reason}: is that filter meant to be so strict?"
        )
    if totals.num_upscaled > _LARGE_SHARE * totals.num_samples:
        found.append(
            f"{_percent(totals.num_upscaled, totals.num_samples)} of the samples are enlarged and "
            "teach the model blur. A smaller --area, --multi-scale or a lower --max-upscale "
            "avoids it."
        )
    if totals.num_samples and totals.num_without_aesthetic == totals.num_samples:
        found.append(
            "No sample has an aesthetic score. Training a base model does not need one; training "
            "a refiner does."
        )
    return found


def thin_buckets(totals: SampleTotals, least: int) -> list[tuple[str, int]]:
    """Buckets with fewer than ``least`` samples, the thinnest first: name and number."""
    thin = [(name, num) for name, num in totals.num_by_bucket.items() if num < least]
    return sorted(thin, key=lambda item: (item[1], item[0]))


def bucket_lines(
    totals: SampleTotals, *, least_per_bucket: int, sheets: Mapping[Bucket, str]
) -> list[BucketLine]:
    """The buckets from wide to tall, those of equal shape from large to small."""
    largest = max(totals.num_by_bucket.values(), default=1)
    lines = []
    for name, num in totals.num_by_bucket.items():
        height, width = bucket = _bucket_of_name(name)
        scale = 24 / max(bucket)
        line = BucketLine(
            name=f"{height} × {width}",
            num_samples=num,
            share=_percent(num, totals.num_samples),
            bar=num / largest,
            shape_height=height * scale,
            shape_width=width * scale,
            is_thin=num < least_per_bucket,
            sheet=sheets.get(bucket),
        )
        lines.append((height / width, -height * width, line))
    return [line for *_, line in sorted(lines, key=lambda item: item[:2])]


def _bucket_of_name(name: str) -> Bucket:
    height, _, width = name.partition("x")
    return int(height), int(width)


def _page(
    name: str,
    totals: SampleTotals,
    lines: Sequence[BucketLine],
    warnings: Sequence[str],
    *,
    share_seen: float,
) -> bytes:
    loader = jinja2.PackageLoader("sdxl_core.storage", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = loader.get_source(environment, "report.css")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = environment.get_template("report.html").render(
        name=name,
        totals=totals,
        facts=_facts(totals),
        lines=lines,
        charts=_charts(totals),
        reasons=_counted(totals.num_by_reason, totals.num_rejected, explain=True),
        notes=_counted(totals.num_by_note, totals.num_samples, explain=False),
        warnings=warnings,
        estimate=f"{share_seen:.2%}" if share_seen < 1 else "",
        style=Markup(style),
        style_hash=f"sha256-{digest}",
    )
    return page.encode()


def _facts(totals: SampleTotals) -> list[tuple[str, str]]:
    """Number and words of each fact at the top of the page."""
    per_sample = totals.num_captions / max(1, totals.num_samples)
    with_score = totals.num_samples - totals.num_without_aesthetic
    return [
        (f"{totals.num_source_rows:,}", "rows in"),
        (f"{totals.num_samples:,}", f"samples in {len(totals.num_by_bucket)} buckets"),
        (
            f"{totals.num_rejected:,}",
            f"rows rejected, {_percent(totals.num_rejected, totals.num_source_rows)}",
        ),
        (_percent(totals.num_upscaled, totals.num_samples), "of samples enlarged"),
        (f"{per_sample:.2f}", "captions per sample"),
        (_percent(with_score, totals.num_samples), "with an aesthetic score"),
    ]


def _charts(totals: SampleTotals) -> list[Chart]:
    return [make_chart(name, totals.histograms[name]) for name in HISTOGRAMS]


def _counted(counts: Mapping[str, int], num_all: int, *, explain: bool) -> list[dict[str, Any]]:
    """Words with their counts, the most frequent first."""
    return [
        {
            "word": word,
            "count": num,
            "share": _percent(num, num_all),
            "bar": num / max(1, num_all),
            "explanation": RejectReason(word).explanation if explain else "",
        }
        for word, num in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _percent(num: int, num_all: int) -> str:
    share = num / max(1, num_all)
    return f"{share:.1%}" if share >= 0.001 or num == 0 else "< 0.1%"
