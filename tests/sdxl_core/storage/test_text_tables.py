"""CSV and JSONL: exact rows whatever the text holds, and one bad record is one failing row."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sdxl_core.storage.prompt_files import prompts_of, read_all, write_table

PROMPT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(st.fixed_dictionaries({"prompt": PROMPT, "x": PROMPT}), min_size=1, max_size=20))
def test_csv_of_any_text_reads_back_as_the_csv_module_wrote_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "p.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "x"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)

    found = read_all(path)

    assert [(r["prompt"], r["x"]) for r in found] == [
        (row["prompt"] or None, row["x"] or None) for row in rows
    ]


@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {"prompt": st.text(st.characters(exclude_categories=["Cs"]))},
                optional={"seed": st.none() | st.integers(0, 2**63 - 1)},
            ).map(json.dumps),
            st.sampled_from(["{", "[]", "nope", '{"prompt": "a"', '{"a": "\\ud800"}', "[" * 3000]),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_broken_json_lines_fail_alone_and_the_others_keep_their_values(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.mktemp("t") / "p.jsonl"
    path.write_text("{}\n" + "\n".join(lines), encoding="utf-8")

    found = read_all(path)[1:]

    assert len(found) == len(lines)
    for line, row in zip(lines, found, strict=True):
        if line.endswith("}") and "ud800" not in line:
            expected = json.loads(line)
            assert row["_unreadable"] is None
            assert {k: row[k] for k in expected} == expected
        else:
            assert "p.jsonl, line" in row["_unreadable"]
            assert row.get("prompt") is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "not JSON"),
        ('{"prompt": "a"} {"prompt": "b"}', "not JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ('"text"', "expected a JSON object, found str"),
        ('{"prompt": "a\x00b"}', "not JSON"),
        ('{"prompt": "\\ud83d"}', "surrogate"),
        ("[" * 200_000, "not usable JSON"),
        ('{"seed": ' + "9" * 5000 + "}", "not usable JSON"),
    ],
    ids=["cut", "two", "list", "text", "raw-nul", "half-surrogate", "deep", "digits"],
)
def test_unreadable_json_line_tells_file_line_and_reason(
    tmp_path: Path, line: str, reason: str
) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "a"}}\n\n{line}\n{{"prompt": "c"}}\n')

    rows = read_all(tmp_path / "p.jsonl")

    assert prompts_of(rows) == ["a", None, "c"]
    assert reason in rows[1]["_unreadable"]
    assert rows[1]["_unreadable"].startswith(f"{tmp_path / 'p.jsonl'}, line 3: ")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("only one field", "found 1 fields, expected 2"),
        ("a,b,c", "found 3 fields, expected 2"),
        ('"closed"x,1', "broken CSV record"),
        ('"never closed,1', "broken CSV record"),
        ('a,"never closed', "broken CSV record"),
        ("nul\0byte,1", "NUL"),
        ("lone\rreturn,1", "broken CSV record"),
    ],
)
@pytest.mark.parametrize("following", ["plain", "quoted", "none"])
def test_one_bad_csv_record_is_one_failing_row(
    tmp_path: Path, record: str, reason: str, following: str
) -> None:
    after = {
        "plain": ["c,3", "d,4"],
        "quoted": ['"c, really",3', 'd,"4"'],
        "none": [],
    }[following]
    text = "\n".join(["prompt,seed", '"two\nlines",1', record, *after])
    (tmp_path / "p.csv").write_bytes(text.encode())

    rows = read_all(tmp_path / "p.csv")

    expected = list(csv.reader(io.StringIO("\n".join(after))))
    assert prompts_of(rows) == ["two\nlines", None, *(fields[0] for fields in expected)]
    assert reason in rows[1]["_unreadable"]
    assert f"{tmp_path / 'p.csv'}, line 4: " in rows[1]["_unreadable"]
    assert [row["_unreadable"] for row in rows[2:]] == [None] * len(after)


def test_wrong_encoding_harms_one_csv_row_and_names_the_column(tmp_path: Path) -> None:
    latin = "größe".encode("latin-1")
    (tmp_path / "p.csv").write_bytes(b"id,prompt\n1,ok\n2," + latin + b"\n3,\xe5\x9b\xbe\n")

    rows = read_all(tmp_path / "p.csv")

    assert prompts_of(rows) == ["ok", None, "图"]
    assert "column 'prompt' is not UTF-8" in rows[1]["_unreadable"]


def test_wrong_encoding_harms_one_json_line(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "gr\xf6\xdfe"}\n{"prompt": "ok"}\n')

    rows = read_all(tmp_path / "p.jsonl")

    assert prompts_of(rows) == [None, "ok"]
    assert "not UTF-8" in rows[0]["_unreadable"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
def test_line_ends_blank_lines_and_byte_order_marks_make_no_rows(
    tmp_path: Path, newline: str, mark: bytes, end: str
) -> None:
    table = f"id,prompt\n\n1,a\n\n\n2,b{end}".replace("\n", newline)
    (tmp_path / "p.csv").write_bytes(mark + table.encode())
    lines = f'\n{{"prompt": "a"}}\n  \n{{"prompt": "b"}}{end}'.replace("\n", newline)
    (tmp_path / "p.jsonl").write_bytes(mark + lines.encode())

    assert read_all(tmp_path / "p.csv") == [
        {"id": "1", "prompt": "a", "_unreadable": None},
        {"id": "2", "prompt": "b", "_unreadable": None},
    ]
    assert prompts_of(read_all(tmp_path / "p.jsonl")) == ["a", "b"]


def test_megabyte_prompts_and_null_characters_pass_through(tmp_path: Path) -> None:
    huge = "wörd, " * 200_000
    rows = [{"prompt": huge}, {"prompt": "with \0 inside"}, {"prompt": '"' * 1000}]
    write_table(tmp_path / "p.jsonl", rows)
    write_table(tmp_path / "p.csv", [rows[0], rows[2]])

    assert prompts_of(read_all(tmp_path / "p.jsonl")) == [row["prompt"] for row in rows]
    assert prompts_of(read_all(tmp_path / "p.csv")) == [huge, '"' * 1000]


def test_line_beyond_all_measure_is_one_failing_row_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "p.jsonl").open("wb") as file:
        file.write(b'{"prompt": "a"}\n{"prompt": "' + b"x" * (40 << 20) + b'"}\n{"prompt": "c"}\n')
    with (tmp_path / "p.csv").open("wb") as file:
        file.write(b"prompt\na\n" + b"x" * (40 << 20) + b"\nc\n")

    for name in ("p.jsonl", "p.csv"):
        rows = read_all(tmp_path / name)
        assert prompts_of(rows) == ["a", None, "c"]
        assert "longer than 16 MiB" in rows[1]["_unreadable"]


def test_json_types_are_kept_where_the_column_has_one(tmp_path: Path) -> None:
    rows = [
        {"seed": 2**60 + 1, "scale": 5, "on": True, "mixed": 1, "tags": ["a", "é"], "none": None},
        {"seed": 7, "scale": 7.5, "on": None, "mixed": "x", "tags": {"k": 1}, "late": 1.5},
        {"seed": None, "huge": 2**70, "wide": 0.5},
        {"wide": 2**60 + 1, "mixed": False},
    ]
    write_table(tmp_path / "p.jsonl", rows)

    for rows_per_part in (1, 10):
        found = read_all(tmp_path / "p.jsonl", rows_per_part)

        assert [r["seed"] for r in found] == [2**60 + 1, 7, None, None]
        assert [r["scale"] for r in found] == [5.0, 7.5, None, None]
        assert [r["on"] for r in found] == [True, None, None, None]
        assert [r["mixed"] for r in found] == ["1", "x", None, "false"]
        assert [r["tags"] for r in found] == ['["a", "é"]', '{"k": 1}', None, None]
        assert [r["none"] for r in found] == [None] * 4
        assert [r["late"] for r in found] == [None, 1.5, None, None]
        assert found[2]["huge"] == str(2**70)
        assert [found[2]["wide"], found[3]["wide"]] == ["0.5", str(2**60 + 1)]  # never rounded


def test_empty_header_names_get_the_names_that_pandas_gives_them(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(",prompt\n0,a\n")

    assert read_all(tmp_path / "p.csv")[0]["Unnamed: 0"] == "0"
