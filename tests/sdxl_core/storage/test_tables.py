"""Prompt tables: every row is counted once and read once, whatever the files are like."""

import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError, SchemaError, StoreError
from sdxl_core.storage.stores import open_store
from sdxl_core.storage.tables import PartPlan, find_table_files, plan_parts, read_part
from tests.sdxl_core.storage.prompt_files import prompts_of, read_all, write_table
from tests.servers import S3Server, flaky_proxy


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("rows_per_part", [1, 3, 64, 1000])
def test_every_row_is_read_once_in_order(tmp_path: Path, suffix: str, rows_per_part: int) -> None:
    rows = [{"prompt": f"cat, «{n}»\nand a dog", "seed": n} for n in range(200)]
    write_table(tmp_path / f"prompts{suffix}", rows)

    found = read_all(tmp_path / f"prompts{suffix}", rows_per_part)

    assert prompts_of(found) == [row["prompt"] for row in rows]
    expected_seeds = [str(n) for n in range(200)] if suffix == ".csv" else list(range(200))
    assert [row["seed"] for row in found] == expected_seeds
    assert all(row["_unreadable"] is None for row in found)


@given(
    num_rows=st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any),
    rows_per_part=st.integers(1, 15),
)
def test_parts_cover_each_row_of_several_files_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, num_rows: list[int], rows_per_part: int
) -> None:
    folder = tmp_path_factory.mktemp("t")
    for number, count in enumerate(num_rows):
        lines = [json.dumps({"file": number, "row": row}) + "\n" for row in range(count)]
        (folder / f"{number}.jsonl").write_text("".join(lines))

    plan = plan_parts(find_table_files(str(folder)), rows_per_part)
    parts = [plan.part(k) for k in range(plan.num_parts)]
    rows = [row for part in parts for row in read_part(part).to_pylist()]

    assert [(r["file"], r["row"]) for r in rows] == [
        (number, row) for number, count in enumerate(num_rows) for row in range(count)
    ]
    starts = [part.global_first_row for part in parts]
    assert starts == [sum(p.num_rows for p in parts[:k]) for k in range(len(parts))]
    assert plan.num_rows == sum(num_rows) == sum(part.num_rows for part in parts)
    assert all(1 <= part.num_rows <= rows_per_part for part in parts)
    assert [part.index for part in parts] == list(range(len(parts)))
    for wrong in (-1, plan.num_parts):
        with pytest.raises(IndexError):
            plan.part(wrong)


def test_all_parts_of_all_files_have_the_same_columns_and_types(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", [{"prompt": "a", "score": 1, "only_a": [1, 2]}])
    write_table(tmp_path / "b.parquet", [{"prompt": "b", "score": 1.5, "only_b": "x"}])

    plan = plan_parts(find_table_files(str(tmp_path)), 10)
    tables = [read_part(plan.part(k)) for k in range(plan.num_parts)]

    assert tables[0].schema == tables[1].schema
    assert tables[0].schema.names == ["prompt", "score", "only_a", "only_b", "_unreadable"]
    assert pa.concat_tables(tables).to_pylist() == [
        {"prompt": "a", "score": "1", "only_a": [1, 2], "only_b": None, "_unreadable": None},
        {"prompt": "b", "score": "1.5", "only_a": None, "only_b": "x", "_unreadable": None},
    ]


def test_damaged_row_group_costs_the_rows_of_its_parts_only(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    table = pa.table({"prompt": [f"{n:04d} " + "abcdefgh" * 50 for n in range(40)]})
    pq.write_table(table, path, row_group_size=10, use_dictionary=False, write_statistics=False)
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 30] = b"\xff" * 30
    path.write_bytes(bytes(data))

    rows = read_all(path, 5)

    assert len(rows) == 40
    bad = [n for n, row in enumerate(rows) if row["_unreadable"]]
    assert bad == list(range(10, 20))
    assert "damaged parquet data" in rows[10]["_unreadable"]
    assert rows[20]["prompt"].startswith("0020")


def test_parquet_text_that_is_not_utf8_is_one_failing_row(tmp_path: Path) -> None:
    raw = pa.array([b"ok", b"gr\xf6\xdfe", None, b"\xe5\x9b\xbe"], pa.binary())
    prompts = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    pq.write_table(pa.table({"prompt": prompts, "seed": [1, 2, 3, 4]}), tmp_path / "p.parquet")

    rows = read_all(tmp_path / "p.parquet")

    assert prompts_of(rows) == ["ok", None, None, "图"]
    assert [row["seed"] for row in rows] == [1, 2, 3, 4]
    assert [bool(row["_unreadable"]) for row in rows] == [False, True, False, False]
    assert "row 1: column 'prompt' is not UTF-8" in rows[1]["_unreadable"]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("p.parquet", b"prompt\na\n", "not parquet"),
        ("p.parquet", b"PAR1 cut off", "not a readable parquet file"),
        ("p.parquet", b"", "not parquet"),
        ("p.csv", b"PAR1....PAR1", "found parquet"),
        ("p.csv", b"\x1f\x8b\x08rest", "compressed"),
        ("p.csv", "prompt\na".encode("utf-16"), "UTF-16"),
        ("p.csv", "prompt\na".encode("utf-16-be"), "UTF-16"),
        ("p.csv", b"prompt\ra\rb\r", "CR alone"),
        ("p.csv", b"id;prompt\n1;a\n", "separated by commas"),
        ("p.csv", b"prompt,prompt\na,b\n", "found twice: prompt"),
        ("p.csv", b"pr\xf6mpt\na\n", "header is not UTF-8"),
        ("p.csv", b'"prompt\na\n', "header cannot be read"),
        ("p.jsonl", b' [{"prompt": "a"}]', "JSON array"),
        ("p.txt", b"a cat", "expected .parquet, .csv or .jsonl"),
        ("p.csv.gz", b"\x1f\x8b", "expected .parquet, .csv or .jsonl"),
    ],
)
def test_file_that_is_no_table_is_refused_and_named(
    tmp_path: Path, name: str, data: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(data)

    with pytest.raises(SchemaError, match=told) as caught:
        read_all(tmp_path / name)

    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("text", ["", "prompt,seed\n", "\n\n"])
def test_table_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text)

    with pytest.raises(ConfigError, match="no rows"):
        read_all(tmp_path / "p.csv")


def test_rows_per_part_must_be_positive(tmp_path: Path) -> None:
    write_table(tmp_path / "p.csv", [{"prompt": "a"}])

    with pytest.raises(ConfigError, match="rows_per_part"):
        read_all(tmp_path / "p.csv", 0)


def test_duplicate_parquet_columns_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"])
    pq.write_table(table, tmp_path / "p.parquet")

    with pytest.raises(SchemaError, match="found twice: prompt"):
        read_all(tmp_path / "p.parquet")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_file_changed_after_the_plan_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    write_table(path, [{"prompt": "a"}, {"prompt": "b"}])
    plan = plan_parts(find_table_files(str(path)), 1)
    write_table(path, [{"prompt": "other and longer"}])

    with pytest.raises(SchemaError, match="changed after it was counted"):
        read_part(plan.part(0))


def test_plan_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    def digest(folder: str, suffix: str, prompt: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / f"p{suffix}"
        write_table(path, [{"prompt": prompt}])
        return plan_parts(find_table_files(str(path)), 1).digest

    for suffix in (".parquet", ".csv", ".jsonl"):
        assert digest("here", suffix, "a cat") == digest("there", suffix, "a cat")
        assert digest("here", suffix, "a cat") != digest("there", suffix, "a cow")


def test_plan_and_parts_travel_by_pickle_and_parts_are_small(tmp_path: Path) -> None:
    write_table(tmp_path / "p.csv", [{"prompt": f"p{n}", "seed": n} for n in range(20_000)])
    plan = plan_parts(find_table_files(str(tmp_path / "p.csv")), 64)

    copy: PartPlan = pickle.loads(pickle.dumps(plan))
    part = pickle.dumps(plan.part(300))

    assert len(part) < 2000
    assert read_part(copy.part(300)).equals(read_part(pickle.loads(part)))
    assert read_part(plan.part(300)).column("prompt")[0].as_py() == f"p{300 * 64}"


def test_rewritten_text_of_an_earlier_unreadable_column_is_not_believed(tmp_path: Path) -> None:
    write_table(tmp_path / "p.jsonl", [{"prompt": "a", "_unreadable": "from an earlier run"}])

    assert read_all(tmp_path / "p.jsonl") == [{"prompt": "a", "_unreadable": None}]


@pytest.mark.s3
def test_tables_on_s3_read_like_local_ones(moto_url: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"cat {n}", "seed": n} for n in range(150)]
    store = open_store(moto_url + "/in")
    for suffix in (".parquet", ".csv", ".jsonl"):
        write_table(tmp_path / f"p{suffix}", rows)
        store.write_bytes(f"p{suffix}", (tmp_path / f"p{suffix}").read_bytes())

        assert read_all(store.join(f"p{suffix}"), 64) == read_all(tmp_path / f"p{suffix}", 64)
    assert read_all(moto_url + "/in/*.csv", 64) == read_all(tmp_path / "p.csv", 64)


@pytest.mark.s3
def test_lost_connection_is_not_taken_for_damaged_data(
    moto: S3Server, moto_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(moto_url)
    for suffix in (".parquet", ".csv"):
        write_table(tmp_path / f"p{suffix}", [{"prompt": "a" * 1000}] * 100)
        store.write_bytes(f"p{suffix}", (tmp_path / f"p{suffix}").read_bytes())
        plan = plan_parts(find_table_files(store.join(f"p{suffix}")), 10)
        with flaky_proxy(moto.port) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            proxy.cut_after_bytes, proxy.num_cuts_left = 1000, 10**6

            with pytest.raises(StoreError) as caught:
                read_part(plan.part(5), retries=1)

            assert caught.value.retryable
        monkeypatch.setenv("AWS_ENDPOINT_URL", moto.endpoint)
