"""Folders as sources: pictures with captions beside them, or listed in a metadata file."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.contract.samples import RawSample
from sdxl_core.storage.source_folder import folder_rows
from sdxl_core.storage.source_members import MAX_IMAGE_BYTES, MAX_TEXT_BYTES
from sdxl_core.storage.source_plan import SourcePlan, plan_sources
from sdxl_core.storage.sources import count_slice, read_slice
from sdxl_core.storage.stores import StoredFile, open_store
from tests.sdxl_core.storage.source_files import jpeg, reasons, written


def rows_of(plan: SourcePlan) -> list[RawSample]:
    """All rows, after looking that each slice has as many as are counted."""
    rows = []
    for index in range(plan.num_slices):
        piece = plan.slice(index)
        found = list(read_slice(piece))
        assert len(found) == count_slice(piece).num_rows == piece.num_rows
        rows += found
    assert plan.num_rows == len(rows)
    return rows


def fill(root: Path, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        written(root / path, data)


def test_pictures_are_joined_with_the_captions_beside_them(tmp_path: Path) -> None:
    files = {
        "a.jpg": b"A", "a.txt": b"one\n\n two \n", "deep/er/b.PNG": b"B", "deep/er/b.caption": b"b",
        "c.v2.webp": b"C", "c.v2.json": b'{"caption": ["x", "y"], "aesthetic": 6}',
        "README.md": b"-", ".hidden/x.jpg": b"X", "a.b/d.jpg": b"D", "a.b/d.txt": b"\xe9",
    }  # fmt: skip
    fill(tmp_path, files)

    rows = {row.key: row for row in rows_of(plan_sources([str(tmp_path)]))}

    assert {key: (row.image, row.captions) for key, row in rows.items()} == {
        "a": (b"A", ("one", "two")),
        "deep/er/b": (b"B", ("b",)),
        "c.v2": (b"C", ("x", "y")),
        "a.b/d": (b"D", ("é",)),
    }
    assert rows["c.v2"].metadata == {"aesthetic": 6}
    assert rows["a.b/d"].notes == ("caption_latin1",)
    assert rows["a"].source == f"{tmp_path}#a.jpg"


def test_every_picture_and_every_lone_caption_is_a_row(tmp_path: Path) -> None:
    files = {
        "a.jpg": b"A",
        "a.png": b"P",
        "a.txt": b"t",
        "b.jpg": b"B",
        "c.txt": b"t",
        "d.jpg": b"",
    }
    fill(tmp_path, {**files, "d.txt": b"t", "e.jpg": b"E", "e.txt": b" \n"})

    rows = rows_of(plan_sources([str(tmp_path)]))

    assert [row.key for row in rows] == ["a.jpg", "a.png", "b", "c", "d", "e"]
    assert reasons(rows) == {
        "ok": 2, "missing_caption": 2, "missing_image": 1, "empty_image": 1,
    }  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.sets(
        st.from_regex(
            r"(a|b|a\.b|a-b)(/(a|a\.b|c|c\.d))?(\.x)?\.(jpg|PNG|txt|json|md)", fullmatch=True
        )
    )
)
def test_rows_of_a_folder_are_its_pictures_and_the_captions_without_one(paths: set[str]) -> None:
    rows = list(folder_rows(StoredFile(path, 1) for path in sorted(paths)))

    pictures = {path for path in paths if path.lower().endswith((".jpg", ".png"))}
    stems = {os.path.splitext(path)[0] for path in pictures}
    lone = {path[:-4] for path in paths if path.endswith(".txt") and path[:-4] not in stems}
    assert sorted(row.image for row in rows if row.image) == sorted(pictures)
    assert sorted(row.key for row in rows if not row.image) == sorted(lone)
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        stem = os.path.splitext(row.image)[0] if row.image else row.key
        beside = {text for text in ("txt", "json") if f"{stem}.{text}" in paths}
        assert set(row.beside) == beside


def test_file_that_disappears_is_a_rejected_row(tmp_path: Path) -> None:
    fill(tmp_path, {f"{n}.{suffix}": b"x" for n in range(5) for suffix in ("jpg", "txt")})
    plan = plan_sources([str(tmp_path)], rows_per_slice=2)
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "3.txt").unlink()

    rows = rows_of(plan)

    assert reasons(rows) == {"ok": 3, "file_missing": 2}
    assert rows[1].problem is not None
    assert "1.jpg" in rows[1].problem[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_a_rejected_row(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": b"A", "a.txt": b"t"})
    (tmp_path / "a.jpg").chmod(0)

    assert reasons(rows_of(plan_sources([str(tmp_path)]))) == {"file_missing": 1}


def test_metadata_jsonl_gives_captions_and_the_pictures_it_leaves_out_are_rows(
    tmp_path: Path,
) -> None:
    lines = b'{"file_name": "a.jpg", "text": "one", "punsafe": 0.5}\n'
    lines += b'{"file_name": "sub/b.jpg", "text": "two"}\n{"file_name": "gone.jpg", "text": "x"}\n'
    fill(tmp_path, {"train/metadata.jsonl": lines, "train/a.jpg": b"A", "train/sub/b.jpg": b"B"})
    fill(tmp_path, {"train/extra.jpg": b"E", "train/lone.jpg": b"L", "train/lone.txt": b"lone"})

    rows = rows_of(plan_sources([str(tmp_path)]))

    assert [(row.image, row.captions) for row in rows] == [
        (b"A", ("one",)), (b"B", ("two",)), (None, ("x",)), (b"E", ()), (b"L", ("lone",)),
    ]  # fmt: skip
    assert rows[0].metadata["punsafe"] == 0.5
    assert reasons(rows) == {"ok": 3, "file_missing": 1, "missing_caption": 1}


def test_metadata_csv_that_points_out_of_the_folder_is_refused_row_by_row(tmp_path: Path) -> None:
    secret = written(tmp_path / "secret.jpg", b"S")
    table = (
        f"file_name,caption\n../secret.jpg,c\n{secret},c\nfile://{secret},c\n..\\x.jpg,c\na.jpg,c\n"
    )
    fill(tmp_path / "data", {"metadata.csv": table.encode(), "a.jpg": b"A"})

    rows = rows_of(plan_sources([str(tmp_path / "data")]))

    assert reasons(rows) == {"unsafe_member": 4, "ok": 1}
    assert b"S" not in {row.image for row in rows}


def test_slices_of_a_folder_hold_so_many_rows_and_bytes_at_most(tmp_path: Path) -> None:
    fill(tmp_path, {f"{n:02d}.jpg": b"x" * (100 if n < 10 else 1000) for n in range(15)})

    plan = plan_sources([str(tmp_path)], rows_per_slice=4, bytes_per_slice=1500)

    assert [plan.slice(n).num_rows for n in range(plan.num_slices)] == [4, 4, 3, 1, 1, 1, 1]
    assert [plan.slice(n).num_bytes for n in range(3)] == [400, 400, 1200]


def test_names_of_a_large_folder_take_few_bytes(tmp_path: Path) -> None:
    fill(tmp_path, {f"picture-{n:06d}.jpg": b"" for n in range(1000)})

    plan = plan_sources([str(tmp_path)])

    assert sum(len(plan.slice(n).packed_rows) for n in range(plan.num_slices)) < 10 * 1000


def test_picture_or_caption_that_is_too_large_is_rejected_for_that(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": b"A", "a.txt": b"t", "b.jpg": b"B", "b.txt": b"t"})
    os.truncate(tmp_path / "a.jpg", MAX_IMAGE_BYTES + 1)  # a file of holes
    os.truncate(tmp_path / "b.txt", MAX_TEXT_BYTES + 1)

    details = [row.problem[1] for row in rows_of(plan_sources([str(tmp_path)])) if row.problem]

    assert details == [
        "its .jpg file has 256 MiB, expected at most 256",
        "its .txt file has 16 MiB, expected at most 16",
    ]


@pytest.mark.timeout(60)
def test_pipe_is_no_picture_and_is_not_waited_for(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": b"A", "a.txt": b"t"})
    os.mkfifo(tmp_path / "b.jpg")
    fill(tmp_path / "more", {"metadata.csv": b"file_name,text\np.jpg,x\n/dev/zero,y\n"})
    os.mkfifo(tmp_path / "more" / "p.jpg")

    plan = plan_sources([str(tmp_path)])

    assert reasons(rows_of(plan)) == {"ok": 1, "file_missing": 1, "unsafe_member": 1}


@pytest.mark.s3
def test_key_on_s3_that_is_no_plain_path_is_a_rejected_row(moto_url: str) -> None:
    import s3fs

    store = open_store(moto_url)
    store.write_bytes("a.jpg", b"A")
    store.write_bytes("a.txt", b"t")
    bucket, _, prefix = moto_url.removeprefix("s3://").partition("/")
    key = f"{prefix}/b//c.jpg"
    s3fs.S3FileSystem().call_s3("put_object", Bucket=bucket, Key=key, Body=b"B")

    rows = rows_of(plan_sources([moto_url]))

    assert [row.key for row in rows] == ["a", "b//c"]
    assert reasons(rows) == {"ok": 1, "unsafe_member": 1}
    assert rows[1].problem is not None
    assert "'b//c.jpg' is not a path below" in rows[1].problem[1]


@pytest.mark.s3
def test_folder_on_s3_gives_the_same_rows_as_on_disk(tmp_path: Path, moto_url: str) -> None:
    files = {f"{n % 3}/{n}.jpg": jpeg(n) for n in range(12)}
    files |= {f"{n % 3}/{n}.txt": f"c{n}".encode() for n in range(11)}
    fill(tmp_path, files)
    store = open_store(moto_url)
    for path, data in files.items():
        store.write_bytes(path, data)

    local = rows_of(plan_sources([str(tmp_path)]))
    remote = rows_of(plan_sources([moto_url]))

    assert [(r.key, r.image, r.captions, r.problem) for r in local] == [
        (r.key, r.image, r.captions, r.problem) for r in remote
    ]
    assert reasons(remote) == {"ok": 11, "missing_caption": 1}
    plan = plan_sources([moto_url])
    store.delete("0/0.jpg")
    assert reasons(rows_of(plan)) == {"ok": 10, "missing_caption": 1, "file_missing": 1}
