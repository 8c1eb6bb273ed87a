"""Tables as sources: pictures in the rows or in files, and no row that vanishes."""

import base64
import csv
import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError, SchemaError, StoreError
from sdxl_core.contract.samples import RawSample
from sdxl_core.storage.source_plan import SourcePlan, plan_sources
from sdxl_core.storage.sources import count_slice, read_slice
from sdxl_core.storage.stores import open_store
from tests.sdxl_core.storage.source_files import jpeg, reasons, written
from tests.servers import S3Server, flaky_proxy


def rows_of(plan: SourcePlan) -> list[RawSample]:
    """All rows, after looking that each slice has as many as are counted."""
    rows = []
    for index in range(plan.num_slices):
        piece = plan.slice(index)
        found = list(read_slice(piece))
        assert len(found) == count_slice(piece).num_rows == piece.num_rows
        assert [row.row_index for row in found] == list(range(len(found)))
        rows += found
    assert plan.num_rows == len(rows)
    return rows


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def test_parquet_of_picture_bytes_gives_its_rows_in_order(tmp_path: Path) -> None:
    images = [jpeg(n) for n in range(10)]
    columns = {
        "jpg": images,
        "caption": [f"c{n}" for n in range(10)],
        "key": [f"k{n}" for n in range(10)],
        "aesthetic": [n / 2 for n in range(10)],
    }
    url = parquet(tmp_path / "t.parquet", columns, row_group_size=3)

    plan = plan_sources([url], rows_per_slice=6)
    rows = rows_of(plan)

    assert plan.num_slices == 2
    assert [row.image for row in rows] == images
    assert [row.captions for row in rows] == [(f"c{n}",) for n in range(10)]
    assert [row.key for row in rows] == columns["key"]
    assert [row.metadata for row in rows] == [{"aesthetic": n / 2} for n in range(10)]
    assert rows[7].source == f"{url}#7"


def test_struct_of_bytes_and_path_and_lists_of_captions_are_read(tmp_path: Path) -> None:
    written(tmp_path / "img" / "b.jpg", b"B")
    cells = [{"bytes": b"A", "path": "a.jpg"}, {"bytes": None, "path": "img/b.jpg"}, None]
    url = parquet(tmp_path / "t.parquet", {"image": cells, "text": [["x", " y "], [], ["z"]]})

    rows = rows_of(plan_sources([url]))

    assert [row.image for row in rows] == [b"A", b"B", None]
    assert [row.captions for row in rows] == [("x", "y"), (), ("z",)]
    assert reasons(rows) == {"ok": 1, "missing_caption": 1, "missing_image": 1}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_table_of_paths_finds_files_relative_to_itself(tmp_path: Path, suffix: str) -> None:
    written(tmp_path / "img" / "a.jpg", b"A")
    absolute = written(tmp_path / "other" / "b.jpg", b"B")
    paths = ["../img/a.jpg", absolute, f"file://{absolute}", "gone.jpg", "https://x.org/a.jpg", ""]
    rows = [{"image_path": path, "caption": f"c{n}", "n": n} for n, path in enumerate(paths)]
    text = io.StringIO()
    if suffix == "csv":
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    else:
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    url = written(tmp_path / "tables" / f"t.{suffix}", text.getvalue().encode())

    found = rows_of(plan_sources([url]))

    assert [row.image for row in found] == [b"A", b"B", b"B", None, None, None]
    assert reasons(found) == {"ok": 3, "file_missing": 2, "missing_image": 1}
    assert found[4].problem is not None
    assert "img2dataset" in found[4].problem[1]
    assert found[1].metadata == {"image_path": absolute, "n": "1" if suffix == "csv" else 1}


def test_base64_pictures_of_a_text_table_are_decoded(tmp_path: Path) -> None:
    good = base64.b64encode(b"A").decode()
    cells = [good, f"data:image/png;base64,{good}", "%%%", None]
    lines = [json.dumps({"pic": cell, "caption": "c"}) for cell in cells]
    url = written(tmp_path / "t.jsonl", "\n".join(lines).encode())

    rows = rows_of(plan_sources([url], image_column="pic"))

    assert [row.image for row in rows] == [b"A", b"A", None, None]
    assert reasons(rows) == {"ok": 2, "not_an_image": 1, "missing_image": 1}


def test_bad_lines_are_rows_with_a_problem(tmp_path: Path) -> None:
    written(tmp_path / "a.jpg", b"A")
    good = b'{"file_name": "a.jpg", "text": "t"}\n'
    lines = b"".join([good, b"{broken\n", b"\n", b"[1]\n", b'{"x": "\xff"}\n', good])

    rows = rows_of(plan_sources([written(tmp_path / "t.jsonl", lines)]))

    assert reasons(rows) == {"ok": 2, "unreadable_row": 3}
    assert rows[1].problem is not None
    assert "line 2" in rows[1].problem[1]


def test_csv_caption_in_latin_1_is_read_and_noted(tmp_path: Path) -> None:
    written(tmp_path / "a.jpg", b"A")
    table = "file_name,caption\na.jpg,café\na.jpg\n".encode("latin-1")

    rows = rows_of(plan_sources([written(tmp_path / "t.csv", table)]))

    assert rows[0].captions == ("café",)
    assert rows[0].notes == ("caption_latin1",)
    assert reasons(rows) == {"ok": 1, "unreadable_row": 1}


def test_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    images = [jpeg(n) for n in range(30)]
    columns = {"image": images, "caption": ["c"] * 30}
    url = parquet(
        tmp_path / "t.parquet", columns, row_group_size=10, compression="snappy",
        use_dictionary=False,
    )  # fmt: skip
    column = pq.read_metadata(url).row_group(1).column(0)
    data = bytearray(Path(url).read_bytes())
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    Path(url).write_bytes(bytes(data))

    rows = rows_of(plan_sources([url]))

    assert reasons(rows) == {"ok": 20, "unreadable_row": 10}
    assert [row.image for row in rows[20:]] == images[20:]


def test_text_that_is_not_utf8_in_parquet_costs_one_row(tmp_path: Path) -> None:
    bad = pa.array([b"ok", b"\xff\xfe", b"ok"], pa.binary())
    captions = pa.Array.from_buffers(pa.string(), 3, bad.buffers())
    url = parquet(tmp_path / "t.parquet", {"image": [b"A", b"B", b"C"], "caption": captions})

    assert reasons(rows_of(plan_sources([url]))) == {"ok": 2, "unreadable_row": 1}


def test_cell_that_cannot_be_read_and_is_only_metadata_is_left_out_with_a_note(
    tmp_path: Path,
) -> None:
    bad = pa.array([b"ok", b"\xff\xfe"], pa.binary())
    columns = {
        "image": [b"A", b"B"],
        "caption": ["c", "d"],
        "alt": pa.Array.from_buffers(pa.string(), 2, bad.buffers()),
        "when": pa.array([None, 1], pa.timestamp("us", "No/Where")),
        "aesthetic": [5.0, 6.0],
    }

    rows = rows_of(plan_sources([parquet(tmp_path / "t.parquet", columns)]))

    assert reasons(rows) == {"ok": 2}
    assert [row.notes for row in rows] == [(), ("metadata_unreadable",)]
    assert rows[0].metadata == {"alt": "ok", "when": None, "aesthetic": 5.0}
    assert rows[1].metadata == {"aesthetic": 6.0}


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"image": [b"A"], "caption": ["c"]}, {"image_column": "img"}, "no column 'img'"),
        ({"image": ["a"], "caption": ["c"]}, {"image_column": "image"}, "is it the uri column"),
        ({"image": [b"a"], "caption": ["c"]}, {"uri_column": "image"}, "expected text"),
        ({"n": [1], "caption": ["c"]}, {}, "no column of pictures"),
        ({"image": [b"A"], "n": [1]}, {}, "no column of captions"),
    ],
)
def test_table_without_the_columns_is_refused_with_what_it_has(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    url = parquet(tmp_path / "t.parquet", columns)

    with pytest.raises(SchemaError, match=expected) as caught:
        plan_sources([url], **options)

    assert url in str(caught.value)


def test_further_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", {"image": [b"A"], "caption": ["c"]})
    parquet(tmp_path / "b.parquet", {"image": [b"A"], "text": ["c"]})

    with pytest.raises(SchemaError, match=r"b\.parquet: no column 'caption'"):
        plan_sources([str(tmp_path)])


def test_table_that_changed_since_it_was_planned_is_told(tmp_path: Path) -> None:
    url = written(tmp_path / "t.csv", b"file_name,caption\na.jpg,c\n")
    piece = plan_sources([url]).slice(0)
    written(tmp_path / "t.csv", b"file_name,caption\na.jpg,c\nb.jpg,c\n")

    for use in (lambda: list(read_slice(piece)), lambda: count_slice(piece)):
        with pytest.raises(SchemaError, match="was changed"):
            use()


TEXTS = st.text(st.sampled_from('ab",\r\n é\0'), max_size=60).map(str.encode)


@settings(max_examples=100, deadline=None)
@given(body=st.one_of(TEXTS, st.binary(max_size=60)))
@example(body=b'"a\r\nb",c\r\n\r\n"open,d\n1,2\n')
@example(body=b'a"b,c\n"x"y,1\n"q""q",2\n"e" ,3\n"f"\r\r\n')
def test_csv_records_are_as_many_as_counted_whatever_the_text(body: bytes) -> None:
    assert_counts_agree(b"file_name,caption\n" + body, ".csv")


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(
        st.one_of(st.just(b'{"file_name": "a"}'), st.binary(max_size=9), TEXTS), max_size=9
    )
)
def test_json_lines_are_as_many_as_counted_whatever_the_text(lines: list[bytes]) -> None:
    first = b'{"file_name": "a", "caption": "b"}'
    assert_counts_agree(b"\n".join([first, *lines]), ".jsonl")


def assert_counts_agree(data: bytes, suffix: str) -> None:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        options = {"uri_column": "file_name", "caption_column": "caption"}
        plan_table = functools.partial(plan_sources, [file.name], kind="table", **options)
        if not body_rows(data):
            with pytest.raises(ConfigError, match="no rows"):
                plan_table(rows_per_slice=64)
            return
        plan = plan_table(rows_per_slice=64)
        rows_of(plan)


def body_rows(data: bytes) -> bool:
    """Is there a line after the first that has more than its end."""
    return bool(data.partition(b"\n")[2].strip(b"\r\n")) or data.startswith(b"{")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_slices_of_a_long_text_table_begin_where_the_last_one_ended(
    tmp_path: Path, suffix: str
) -> None:
    if suffix == "csv":
        lines = ["file_name,caption", *(f'{n}.jpg,"c\n{n}"' for n in range(300))]
    else:
        lines = [json.dumps({"file_name": f"{n}.jpg", "caption": f"c\n{n}"}) for n in range(300)]
    url = written(tmp_path / f"t.{suffix}", "\n".join(lines).encode())

    plan = plan_sources([url], rows_per_slice=130)
    rows = rows_of(plan)

    assert plan.num_slices == 3
    assert [row.captions for row in rows] == [(f"c\n{n}",) for n in range(300)]


@pytest.mark.s3
def test_connection_cut_in_the_middle_of_a_table_fails_its_whole_slice_or_loses_nothing(
    moto: S3Server, moto_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    columns = {"image": [jpeg(n, size=(80, 80)) for n in range(100)], "caption": ["c"] * 100}
    path = parquet(tmp_path / "t.parquet", columns)
    open_store(moto_url).write_bytes("t.parquet", Path(path).read_bytes())
    piece = plan_sources([f"{moto_url}/t.parquet"]).slice(0)
    with flaky_proxy(moto.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)

        proxy.cut_after_bytes, proxy.num_cuts_left = 50_000, 1_000
        with pytest.raises(StoreError) as caught:
            list(read_slice(piece, retries=1))
        assert caught.value.retryable

        proxy.num_cuts_left = 2
        assert reasons(read_slice(piece, retries=4)) == {"ok": 100}


@pytest.mark.s3
def test_pictures_on_s3_that_are_gone_are_rows_and_a_lost_server_is_an_error(
    moto: S3Server, moto_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(moto_url)
    store.write_bytes("img/a.jpg", b"A")
    table = f"file_name,caption\nimg/a.jpg,c\nimg/gone.jpg,c\n{moto_url}/img/a.jpg,c\n"
    store.write_bytes("t.csv", table.encode())
    piece = plan_sources([f"{moto_url}/t.csv"]).slice(0)

    assert reasons(read_slice(piece)) == {"ok": 2, "file_missing": 1}
    with flaky_proxy(moto.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        rows = read_slice(piece, retries=0)
        proxy.mode = "refuse"
        with pytest.raises(StoreError) as caught:
            list(rows)
        assert caught.value.retryable
