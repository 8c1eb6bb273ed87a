"""WebDataset tars: what comes out, and that every member is accounted for."""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdxl_core.contract.errors import SchemaError, StoreError
from sdxl_core.contract.samples import RawSample, RejectReason
from sdxl_core.storage.source_tar import read_tar
from sdxl_core.storage.stores import open_store
from sdxl_core.storage.tar_count import count_tar
from tests.sdxl_core.storage.source_files import jpeg, reasons, tar_bytes, written
from tests.servers import FlakyProxy, S3Server, flaky_proxy

NAMES = st.one_of(
    st.sampled_from([
        "a.jpg", "a.txt", "a.json", "a.JPG", "./a.txt", "d/a.jpg", "d//a.txt", "d/./a.txt", "b.png",
        "b.caption", "b.seg.png", "README", "._a.jpg", ".hidden", "../../x.jpg", "/abs.jpg", "a/..",
        "d/../x.txt", "C:\\x.jpg", "x\\..\\y.jpg", ".", "...", "é.jpg", "É.JPG", "a.b/c.jpg",
        "long" * 40 + "/" + "name" * 40 + ".jpg", "\udcff.jpg", "a\n.txt", "..\n/a.txt", "a./b.jpg",
    ]),
    st.text(st.sampled_from("aB./\\é\n"), min_size=1, max_size=8),
)  # fmt: skip
KINDS = st.sampled_from([
    tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE,
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"V",
])  # fmt: skip
FORMATS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


def rows_of(data: bytes) -> list[RawSample]:
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(data)
        file.flush()
        return list(read_tar(file.name, num_bytes=len(data)))


def counted(data: bytes) -> int:
    return count_tar(io.BytesIO(data), len(data)).num_rows


def made_archive(members: list[tuple[str, bytes, bytes]], tar_format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tar_format, errors="surrogateescape"
    ) as archive:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            has_data = kind not in tarfile.SUPPORTED_TYPES or kind in tarfile.REGULAR_TYPES
            if kind == tarfile.AREGTYPE and name.endswith("/"):  # a folder, in the oldest format
                has_data = False
            info.type, info.size = kind, len(data) if has_data else 0
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_archive_of_the_webdataset_library_gives_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            writer.write({
                "__key__": f"{number:04d}",
                "jpg": jpeg(number),
                "txt": f"picture {number}",
                "json": {"aesthetic": 5.5, "caption": "not used"},
            })  # fmt: skip

    rows = list(read_tar(str(path), num_bytes=path.stat().st_size))

    assert [row.key for row in rows] == ["0000", "0001", "0002"]
    assert [row.row_index for row in rows] == [0, 1, 2]
    assert [row.image for row in rows] == [jpeg(0), jpeg(1), jpeg(2)]
    assert [row.captions for row in rows] == [("picture 0",), ("picture 1",), ("picture 2",)]
    assert rows[0].metadata == {"aesthetic": 5.5}
    assert rows[0].source == f"{path}#0000.jpg"
    assert reasons(rows) == {"ok": 3}


@settings(max_examples=50, deadline=None)
@given(
    members=st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=700)), max_size=12),
    tar_format=FORMATS,
)
@example(members=[("a.jpg", b"0", b"x"), ("b.jpg", b"0", b""), ("a.txt", b"0", b"t")], tar_format=1)
def test_rows_of_any_archive_are_as_many_as_its_headers_say(
    members: list[tuple[str, bytes, bytes]], tar_format: int
) -> None:
    data = made_archive(members, tar_format)

    rows = rows_of(data)

    assert len(rows) == counted(data)
    assert [row.row_index for row in rows] == list(range(len(rows)))
    assert RejectReason.TRUNCATED_ARCHIVE not in {row.problem[0] for row in rows if row.problem}
    num_folders = sum(kind == b"5" or (kind == b"\0" and n.endswith("/")) for n, kind, _ in members)
    assert len(rows) <= len(members) - num_folders
    assert bool(rows) == (len(members) > num_folders)


@settings(max_examples=50, deadline=None)
@given(
    members=st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=700)), min_size=1, max_size=6),
    tar_format=FORMATS,
    data=st.data(),
)
def test_rows_of_an_archive_that_breaks_off_are_as_many_as_counted(
    members: list[tuple[str, bytes, bytes]], tar_format: int, data: st.DataObject
) -> None:
    whole = made_archive(members, tar_format)
    used = len(whole.rstrip(b"\0"))
    cut = whole[: data.draw(st.integers(0, used))]

    rows = rows_of(cut)

    assert len(rows) == counted(cut)
    last = rows[-1].problem
    assert last is not None
    assert last[0] == RejectReason.TRUNCATED_ARCHIVE
    kept = {row.key: row for row in rows_of(whole)}
    assert all(row.key in kept for row in rows[:-1])


@settings(max_examples=50, deadline=None)
@given(
    members=st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=700)), min_size=1, max_size=6),
    tar_format=FORMATS,
    data=st.data(),
)
def test_rows_of_a_damaged_archive_are_as_many_as_counted(
    members: list[tuple[str, bytes, bytes]], tar_format: int, data: st.DataObject
) -> None:
    damaged = bytearray(made_archive(members, tar_format))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(bytes(damaged).rstrip(b"\0"))))
        damaged[position] = data.draw(st.integers(0, 255))

    assert len(rows_of(bytes(damaged))) == counted(bytes(damaged))


def test_members_that_are_not_adjacent_are_joined() -> None:
    rows = rows_of(tar_bytes([("a.jpg", b"A"), ("b.jpg", b"B"), ("a.txt", b"1"), ("b.txt", b"2")]))

    assert [(r.key, r.image, r.captions) for r in rows] == [
        ("a", b"A", ("1",)),
        ("b", b"B", ("2",)),
    ]


def test_nested_folders_keep_equal_names_apart() -> None:
    members = [("x/1.jpg", b"A"), ("x/1.txt", b"a"), ("./y/z/1.jpg", b"B")]
    rows = rows_of(tar_bytes([*members, ("y/z/1.txt", b"b")]))

    assert [(row.key, row.captions) for row in rows] == [("x/1", ("a",)), ("y/z/1", ("b",))]


def test_second_member_of_a_key_and_suffix_is_rejected_and_the_first_one_kept() -> None:
    members = [("a.jpg", b"first"), ("a.txt", b"t"), ("a.JPG", b"second"), ("a.jpg", b"third")]
    rows = rows_of(tar_bytes(members))

    assert reasons(rows) == {"ok": 1, "duplicate_key": 2}
    assert rows[0].image == b"first"


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "..\\x.jpg"])
def test_member_named_out_of_the_archive_is_rejected(name: str) -> None:
    rows = rows_of(tar_bytes([("a.jpg", b"A"), (name, b"X"), ("a.txt", b"t")]))

    assert reasons(rows) == {"ok": 1, "unsafe_member": 1}
    assert rows[1].problem is not None
    assert repr(name) in rows[1].problem[1]
    assert rows[1].image is None


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"7", b"S"])
def test_links_devices_and_sparse_files_are_rejected_and_never_followed(kind: bytes) -> None:
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = kind, "/etc/hostname"
    data = tar_bytes([("a.jpg", b"A"), link, ("a.txt", b"t"), ("b.txt", b"t")])

    rows = rows_of(data)

    expected = "empty_image" if kind == tarfile.CONTTYPE else "unsafe_member"
    assert reasons(rows)[expected] == 1
    assert b"A" in {row.image for row in rows}
    assert len(rows) == counted(data)


def test_truncated_archive_gives_its_whole_samples_and_one_rejection() -> None:
    members = [(f"{n}.{suffix}", b"x" * 600) for n in range(4) for suffix in ("jpg", "txt")]
    data = tar_bytes(members)

    rows = rows_of(data[: 5 * 512 * 3 + 700])  # inside of the data of 2.txt

    assert reasons(rows) == {"ok": 2, "missing_caption": 1, "truncated_archive": 1}
    assert rows[-1].problem is not None
    assert "inside of '2.txt'" in rows[-1].problem[1]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "without an end marker"),
        (b"<html>not found</html>", "damaged"),
        (tar_bytes([("a.jpg", b"A")])[:1024], "without an end marker"),
        (b"\x1f\x8b" + bytes(range(1, 256)) * 40, "damaged"),
    ],
)
def test_file_that_is_no_whole_tar_is_one_rejection_that_says_why(data: bytes, found: str) -> None:
    last = rows_of(data)[-1]

    assert last.problem is not None
    assert last.problem[0] == RejectReason.TRUNCATED_ARCHIVE
    assert found in last.problem[1]
    assert len(rows_of(data)) == counted(data)


def test_archives_put_one_after_another_are_all_read() -> None:
    first = tar_bytes([("a.jpg", b"A"), ("a.txt", b"t")])
    data = first + tar_bytes([("b.jpg", b"B"), ("b.txt", b"t")], tar_format=tarfile.GNU_FORMAT)

    assert [row.key for row in rows_of(data)] == ["a", "b"]
    assert counted(data) == 2


def test_header_that_claims_a_huge_size_is_refused_without_reading_it() -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    data = header.tobuf(tarfile.GNU_FORMAT) + tar_bytes([("a.jpg", b"A")])

    assert reasons(rows_of(data)) == {"truncated_archive": 1}
    assert counted(data) == 1


def test_archive_that_changed_since_it_was_planned_is_told(tmp_path: Path) -> None:
    data = tar_bytes([("a.jpg", b"A")])
    with pytest.raises(SchemaError, match="was changed"):
        list(read_tar(written(tmp_path / "a.tar", data), num_bytes=len(data) - 512))


def test_archive_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"gone\.tar"):
        list(read_tar(str(tmp_path / "gone.tar"), num_bytes=1024))


def test_metadata_has_the_other_keys_of_the_json() -> None:
    meta = json.dumps({"text": ["a", " b "], "punsafe": 0.25, "url": "u"}).encode()
    data = tar_bytes([("a.jpg", b"A"), ("a.json", meta), ("a.cls", b"7\n")])
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(data)
        file.flush()
        (row,) = read_tar(file.name, num_bytes=len(data), caption_key="text")

    assert row.captions == ("a", "b")
    assert row.metadata == {"punsafe": 0.25, "url": "u", "cls": 7}


@pytest.fixture
def proxy(moto: S3Server, moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    with flaky_proxy(moto.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.mark.s3
def test_connection_cut_in_the_middle_of_a_shard_fails_the_whole_shard_or_loses_nothing(
    moto_url: str, proxy: FlakyProxy
) -> None:
    members = [(f"{n}.{s}", os.urandom(20_000)) for n in range(40) for s in ("jpg", "cls")]
    data = tar_bytes([*members, *((f"{n}.txt", b"t") for n in range(40))])
    open_store(moto_url).write_bytes("shard.tar", data)
    url = f"{moto_url}/shard.tar"

    proxy.cut_after_bytes, proxy.num_cuts_left = 300_000, 1_000
    with pytest.raises(StoreError) as caught:
        next(read_tar(url, num_bytes=len(data), retries=1))  # not even one row comes out
    assert caught.value.retryable

    proxy.cut_after_bytes, proxy.num_cuts_left = 300_000, 2
    assert reasons(read_tar(url, num_bytes=len(data), retries=4)) == {"ok": 40}
    assert count_tar(io.BytesIO(data), len(data)).num_rows == 40
