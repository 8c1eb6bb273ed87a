"""The gallery: every row is in it, hostile texts are inert, and it needs nothing but its folder."""

import base64
import hashlib
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdxl_core.storage.gallery import GallerySummary, write_gallery
from sdxl_core.storage.gallery_rows import plain_value, script_json
from sdxl_core.storage.image_files import encode_image
from sdxl_core.storage.parts import PartRecord, commit_part
from sdxl_core.storage.sinks import OutputFormat, write_part_files
from sdxl_core.storage.stores import Store, open_store

HOSTILE = [
    "</script><img src=x onerror=\"document.title='broken'\">",
    "<!--<script>alert(1)//-->",
    "{{ 7 * 7 }} {% raw %} ${alert(1)} `'\"",
    "javascript:alert(1)//\u2028\u2029\0]]>",
    "größe 图 🐈",
]
SCHEMA = pa.schema(
    [("id", pa.string()), ("prompt", pa.string()), ("seed", pa.int64()), ("height", pa.int32()),
     ("width", pa.int32()), ("steps", pa.int32()), ("input_row", pa.int64()),
     ("status", pa.string()), ("reason", pa.string()), ("detail", pa.string()),
     ("path", pa.string()), ("score", pa.float64())]
)  # fmt: skip


def write_part(store: Store, part: int, num_rows: int, output_format: OutputFormat) -> None:
    """Rows with hostile texts; the second of each part failed."""
    rows, images = [], []
    for position in range(num_rows):
        number = part * num_rows + position
        failed = position == 1
        text = HOSTILE[number % len(HOSTILE)]
        rows.append(
            {"id": f"{number} {text}"[:60], "prompt": text, "seed": 2**62 + number, "height": 16,
             "width": 24 + 8 * (number % 2), "steps": 30, "input_row": number,
             "status": "failed" if failed else "ok", "reason": "invalid_size" if failed else None,
             "detail": text if failed else None, "path": None, "score": float("nan")}
        )  # fmt: skip
        rgb_HWC = np.full((16, 24, 3), number % 256, np.uint8)
        images.append(None if failed else encode_image(rgb_HWC, image_format="png", parameters={}))
    files = write_part_files(
        store,
        part,
        pa.Table.from_pylist(rows, SCHEMA),
        images,
        output_format=output_format,
        image_format="png",
    )
    num_failed = sum(image is None for image in images)
    record = PartRecord(
        part=part,
        num_rows=num_rows,
        num_by_status={"ok": num_rows - num_failed, "failed": num_failed},
        num_by_reason={"invalid_size": num_failed},
        files=tuple(files),
    )
    commit_part(store, record)


def make_output(
    path: Path | str, num_parts: int, num_rows: int, output_format: OutputFormat = "files"
) -> Store:
    store = open_store(path)
    for part in range(num_parts):
        write_part(store, part, num_rows, output_format)
    return store


def read_rows(store: Store) -> list[dict[str, Any]]:
    """The rows as the page would get them: each script is one call with one JSON object."""
    rows: list[dict[str, Any]] = []
    names = [f.path for f in store.list("_gallery") if f.path.endswith(".js")]
    for number, name in enumerate(names):
        text = store.read_bytes(name).decode("ascii")
        match = re.fullmatch(r"galleryChunk\((\d+), (.*)\);\n", text)
        assert match
        assert int(match[1]) == number
        data = json.loads(match[2])
        rows += [dict(zip(data["columns"], cells, strict=True)) for cells in data["rows"]]
    return rows


class PageParser(html.parser.HTMLParser):
    """Collects tags, attributes and the content of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.contents:
            self.contents[self._inside].append(data)


def test_every_row_is_in_the_gallery_with_its_picture(tmp_path: Path) -> None:
    store = make_output(tmp_path, 3, 4)

    assert write_gallery(store) == GallerySummary(num_rows=12, num_thumbnails=0, num_cells=9)

    rows = read_rows(store)
    assert [row["input_row"] for row in rows] == list(range(12))
    assert [row["prompt"] for row in rows] == [HOSTILE[n % len(HOSTILE)] for n in range(12)]
    assert [row["seed"] for row in rows] == [str(2**62 + n) for n in range(12)]
    for row in rows:
        if row["status"] == "ok":
            assert store.exists(row["_image"])
        else:
            assert row["_image"] is None
            assert row["reason"] == "invalid_size"


@pytest.mark.parametrize("output_format", ["parquet", "webdataset"])
def test_images_inside_of_files_get_a_bounded_number_of_thumbnails(
    tmp_path: Path, output_format: OutputFormat
) -> None:
    store = make_output(tmp_path, 3, 4, output_format)

    summary = write_gallery(store, max_thumbnails=5)

    assert summary == GallerySummary(num_rows=12, num_thumbnails=5, num_cells=9)
    shown = [row["_image"] for row in read_rows(store) if row["_image"]]
    assert len(shown) == 5
    for path in shown:
        assert Image.open(io.BytesIO(store.read_bytes(path))).size == (24, 16)


def test_dry_output_has_a_gallery_without_pictures(tmp_path: Path) -> None:
    store = make_output(tmp_path, 1, 3, "dry")

    assert write_gallery(store) == GallerySummary(num_rows=3, num_thumbnails=0, num_cells=0)
    assert len(read_rows(store)) == 3


def test_output_without_any_part_has_an_empty_gallery(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    assert write_gallery(store).num_rows == 0
    assert store.exists("gallery.html")


def test_larger_output_shows_parts_spread_over_all_of_it(tmp_path: Path) -> None:
    store = make_output(tmp_path, 10, 3, "dry")

    assert write_gallery(store, max_rows=6).num_rows == 6

    assert [row["input_row"] for row in read_rows(store)] == [0, 1, 2, 15, 16, 17]
    page = store.read_bytes("gallery.html").decode()
    assert '"num_rows": 6' in page
    assert '"num_rows_in_all": 30' in page


def test_writing_again_is_deterministic_and_leaves_nothing_old(tmp_path: Path) -> None:
    store = make_output(tmp_path, 2, 3, "parquet")
    write_gallery(store)
    store.write_bytes("_gallery/data-0007.js", b"of a larger gallery")
    before = {f.path: store.read_bytes(f.path) for f in store.list() if "0007" not in f.path}

    write_gallery(store)

    assert {f.path: store.read_bytes(f.path) for f in store.list()} == before


def test_page_holds_no_markup_of_the_rows_and_asks_for_nothing_elsewhere(tmp_path: Path) -> None:
    store = make_output(tmp_path / "out <b>&'\"", 2, 4)
    write_gallery(store)
    page = PageParser(store.read_bytes("gallery.html").decode())

    names = [tag for tag, _ in page.tags]
    assert names.count("script") == 2
    assert "img" not in names
    assert "b" not in names
    for _, attributes in page.tags:
        assert not {"src", "onerror", "onclick"} & attributes.keys()
    index = json.loads(page.contents["script"][0])
    assert index["num_rows"] == 8
    assert index["num_by_reason"] == {"invalid_size": 2}
    assert index["shapes"] == ["16 × 24", "16 × 32"]
    for chunk in store.list("_gallery"):
        assert b"<" not in store.read_bytes(chunk.path)


def test_security_policy_allows_the_scripts_of_the_page_and_no_others(tmp_path: Path) -> None:
    store = make_output(tmp_path, 1, 3)
    write_gallery(store)
    page = PageParser(store.read_bytes("gallery.html").decode())
    policy = next(a["content"] or "" for _, a in page.tags if "http-equiv" in a)

    for content in (page.contents["script"][1], page.contents["style"][0]):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in page.contents["script"][1]


@given(st.text() | st.sampled_from(HOSTILE))
def test_script_json_is_ascii_without_markup_and_reads_back(text: str) -> None:
    script = script_json({"text": text})

    assert script.isascii()
    assert "<" not in script
    assert json.loads(script) == {"text": text}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2**53, 2**53),
        (2**53 + 1, str(2**53 + 1)),
        (-(2**62), str(-(2**62))),
        (float("nan"), "nan"),
        (1.5, 1.5),
        (True, True),
        (None, None),
        (b"abc", "(3 bytes)"),
        ([1, "é"], '[1, "é"]'),
        ("x" * 5000, "x" * 4000 + "… [cut, 5000 characters in all]"),
    ],
)
def test_values_reach_the_page_without_loss(value: object, expected: object) -> None:
    assert plain_value(value) == expected


def test_contact_sheet_shows_images_chosen_evenly(tmp_path: Path) -> None:
    store = make_output(tmp_path, 2, 80, "parquet")  # 158 images, each of one grey

    assert write_gallery(store, max_thumbnails=0).num_cells == 48

    sheet = np.asarray(Image.open(tmp_path / "contact-sheet.png").convert("L"))
    colours = {int(v) for v in np.unique(sheet) if (sheet == v).sum() > 20 * 20}
    shown = sorted(colours & set(range(160)))
    assert len(shown) >= 40
    assert shown[0] == 0
    assert shown[-1] >= 150
    assert max(np.diff(shown)) <= 8


def test_image_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    store = make_output(tmp_path, 1, 4)
    store.delete(read_image_path(store))

    assert write_gallery(store) == GallerySummary(num_rows=4, num_thumbnails=0, num_cells=2)


def read_image_path(store: Store) -> str:
    return next(f.path for f in store.list("images"))


@pytest.mark.s3
def test_gallery_works_on_s3(moto_url: str) -> None:
    store = make_output(moto_url, 1, 3, "webdataset")

    assert write_gallery(store).num_thumbnails == 2

    assert len(read_rows(store)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("output_format", ["files", "webdataset"])
def test_browser_shows_the_rows_as_text(tmp_path: Path, output_format: OutputFormat) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    store = make_output(tmp_path / "out", 2, 5, output_format)
    write_gallery(store)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=15000"]
    url = (tmp_path / "out" / "gallery.html").as_uri()

    shown = subprocess.run(
        [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", url],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    ).stdout

    page = PageParser(shown)
    classes = [attributes.get("class") or "" for _, attributes in page.tags]
    assert classes.count("card") == 8
    assert classes.count("card failed") == 2
    assert "<title>out</title>" in shown
    assert "none" not in classes  # no picture is missing, none was refused by the policy
    assert shown.count("&lt;/script&gt;&lt;img src=x onerror=") >= 2
    assert [tag for tag, _ in page.tags].count("img") == 8
