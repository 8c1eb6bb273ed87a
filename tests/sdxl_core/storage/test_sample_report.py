"""The report of a prepared dataset: its numbers, its advice, and a page that is safe to open."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sdxl_core.contract.reject_reasons import RejectReason
from sdxl_core.contract.samples import staged_table
from sdxl_core.storage.report_charts import HEIGHT, WIDTH, make_chart
from sdxl_core.storage.sample_report import thin_buckets, warnings_of, write_report
from sdxl_core.storage.sample_totals import HISTOGRAMS, SampleTotals, edges, tally_samples
from sdxl_core.storage.stores import open_store
from tests.sdxl_core.storage.staged_samples import make_sample

HOSTILE = "</style><script>document.title='broken'</script><img src=x onerror=alert(1)>"


def make_totals(**changes: object) -> SampleTotals:
    table = staged_table([make_sample(0, row, num_bytes=1) for row in range(30)], source_slice=0)
    values = vars(tally_samples(table, num_source_rows=30)) | changes
    return SampleTotals(**values)


class Tags(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_report_has_the_numbers_of_the_totals(tmp_path: Path) -> None:
    totals = make_totals(num_rejected=12, num_source_rows=42, num_by_reason={"too_small": 12})

    write_report(open_store(tmp_path), totals, least_per_bucket=10)

    report = json.loads((tmp_path / "_report.json").read_text())
    assert report["totals"]["num_source_rows"] == 42
    assert report["totals"]["num_by_bucket"] == {"16x16": 10, "16x24": 10, "24x16": 10}
    for name in HISTOGRAMS:
        assert len(report["totals"]["histograms"][name]) == len(report["edges"][name]) + 1
    page = (tmp_path / "report.html").read_text()
    for expected in ("<dt>42</dt>", "<dt>30</dt>", "<dt>12</dt>", "28.6%", "16 × 24"):
        assert expected in page
    assert RejectReason.TOO_SMALL.explanation in page


def test_writing_the_report_again_gives_the_same_bytes(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_report(store, make_totals())
    before = {file.path: store.read_bytes(file.path) for file in store.list()}
    write_report(store, make_totals())
    assert {file.path: store.read_bytes(file.path) for file in store.list()} == before
    assert len(before) == 2


def test_text_of_a_source_is_shown_as_text(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out <b> & co")
    totals = make_totals(num_by_note={HOSTILE: 3})
    sheets = {(16, 16): "thumbnails/16x16.jpg"}

    write_report(store, totals, sheets=sheets)

    page = store.read_bytes("report.html").decode()
    tags = Tags(page).tags
    names = [tag for tag, _ in tags]
    assert "script" not in names
    assert "b" not in names
    assert [attributes["src"] for tag, attributes in tags if tag == "img"] == [*sheets.values()]
    assert "default-src 'none'" in page
    assert "unsafe" not in page
    assert not any("style" in attributes for _, attributes in tags)  # the policy would refuse it
    assert HOSTILE not in page


def test_thin_buckets_are_named_with_what_can_be_done() -> None:
    totals = make_totals(num_by_bucket={"16x16": 3, "16x24": 7, "24x16": 20})

    assert thin_buckets(totals, 8) == [("16x16", 3), ("16x24", 7)]
    warnings = warnings_of(totals, least_per_bucket=8)
    assert len(warnings) == 1
    for word in ("2 of 3 buckets", "16x16 (3)", "16x24 (7)", "--merge-thin 8"):
        assert word in warnings[0]
    assert warnings_of(totals, least_per_bucket=3) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_upscaled": 20}, ["66.7%", "--multi-scale", "--max-upscale"]),
        ({"num_without_aesthetic": 30}, ["aesthetic", "refiner"]),
        (
            {"num_source_rows": 100, "num_rejected": 70,
             "num_by_reason": {"too_small": 60, "empty_image": 10}},
            ["70.0%", "too_small", "60"],
        ),
        (
            {"num_samples": 0, "num_rejected": 9, "num_source_rows": 9, "num_upscaled": 0,
             "num_by_bucket": {}, "num_without_aesthetic": 0},
            ["no sample"],
        ),
    ],
)  # fmt: skip
def test_what_is_bad_for_training_is_said(changes: dict[str, object], words: list[str]) -> None:
    warnings = warnings_of(make_totals(**changes))
    assert len(warnings) == 1
    for word in words:
        assert word in warnings[0]
    assert warnings_of(make_totals()) == []


def test_estimate_and_empty_report_say_what_they_are(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    write_report(store, SampleTotals(), share_seen=0.0125)
    page = store.read_bytes("report.html").decode()
    assert "Estimated from 1.25% of the source" in page
    assert page.count("No values.") == len(HISTOGRAMS)
    assert "no sample" in page


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_bars_have_the_heights_and_the_places_of_their_counts(name: str) -> None:
    counts = [0] * (len(edges(name)) + 1)
    counts[5], counts[9], counts[14] = 10, 40, 20

    chart = make_chart(name, counts)

    heights = [bar.height for bar in chart.bars]
    assert (chart.num_values, chart.largest) == (70, 40)
    assert [h for h in heights if h] == [HEIGHT / 4, HEIGHT, HEIGHT / 2]
    assert [bar.words.split(": ")[1] for bar in chart.bars if bar.height] == ["10", "40", "20"]
    assert all(bar.y + bar.height == pytest.approx(HEIGHT) for bar in chart.bars)
    assert len({bar.width for bar in chart.bars}) == 1
    assert len(chart.bars) == 12
    step = WIDTH / 12
    middle = chart.bars[5].x + chart.bars[5].width / 2
    assert middle == pytest.approx(5.5 * step, abs=0.02)


def test_ticks_stand_at_the_edges_of_the_bins_that_begin_there() -> None:
    counts = [0] * (len(edges("size_px")) + 1)
    begin = edges("size_px").tolist().index(256.0)
    counts[begin + 1] = counts[begin + 9] = 1  # 256 to 304, and four octaves on

    chart = make_chart("size_px", counts)

    bars = {round(bar.x - 0.75, 1): bar for bar in chart.bars}
    assert [text for _, text in chart.ticks] == ["256", "512", "1024"]
    assert [bars[round(x, 1)].words for x, _ in chart.ticks] == [
        "256 to 304: 1", "512 to 609: 0", "1024 to 1218: 1",
    ]  # fmt: skip


@pytest.mark.slow
def test_browser_shows_the_report(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    write_report(open_store(tmp_path / "out"), make_totals(num_by_note={HOSTILE: 1}))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"]
    url = (tmp_path / "out" / "report.html").as_uri()

    done = subprocess.run(
        [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
         "--dump-dom", url],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )  # fmt: skip

    assert "<title>out: report</title>" in done.stdout
    assert len(re.findall(r'<rect class="bar"', done.stdout)) > 50
    assert "Content Security Policy" not in done.stderr  # the page's own style is allowed
