"""What holds for every store, on a folder and on an S3 server."""

import io
import pickle
import random
from pathlib import Path

import pytest

from sdxl_core.contract.errors import ConfigError, StoreError
from sdxl_core.storage.stores import Store, StoredFile, open_file, open_store, split_url


def test_write_then_read_returns_the_same_bytes(store: Store) -> None:
    store.write_bytes("a/b/c.bin", b"\x00\xff" * 1000)

    assert store.read_bytes("a/b/c.bin") == b"\x00\xff" * 1000
    assert store.size("a/b/c.bin") == 2000


def test_write_over_an_existing_file_replaces_it(store: Store) -> None:
    store.write_bytes("x", b"a longer first version")
    store.write_bytes("x", b"second")

    assert store.read_bytes("x") == b"second"


def test_empty_file_round_trips(store: Store) -> None:
    store.write_bytes("empty", b"")

    assert store.read_bytes("empty") == b""
    assert store.open_read("empty").read() == b""
    assert store.size("empty") == 0


def test_list_sees_files_written_by_another_store_at_once(store: Store) -> None:
    assert store.list() == []
    other = open_store(store.url)
    other.write_bytes("late.txt", b"123")

    assert store.list() == [StoredFile("late.txt", 3)]


def test_list_is_sorted_by_whole_path_and_limited_to_the_folder(store: Store) -> None:
    names = ["a/b", "a.b", "a/c/d", "a0", "ab/x", "a/b.c", "b"]
    for name in names:
        store.write_bytes(name, name.encode())

    assert [f.path for f in store.list()] == sorted(names)
    assert [f.path for f in store.list("a")] == ["a/b", "a/b.c", "a/c/d"]
    assert store.list("a/") == store.list("a")
    assert store.list("absent") == []


def test_exists_is_about_files_only(store: Store) -> None:
    store.write_bytes("folder/file", b"")

    assert store.exists("folder/file")
    assert not store.exists("folder")
    assert not store.exists("other")


def test_delete_twice_is_fine(store: Store) -> None:
    store.write_bytes("x", b"1")

    store.delete("x")
    store.delete("x")

    assert not store.exists("x")


def test_open_read_seeks_like_a_file(store: Store) -> None:
    data = random.Random(0).randbytes(3_000_000)
    store.write_bytes("big", data)

    with store.open_read("big") as file:
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:]
        assert file.read(1) == b""
        file.seek(1_500_000)
        assert file.read(5) == data[1_500_000:1_500_005]
        assert file.tell() == 1_500_005
        file.seek(0)
        assert file.read() == data


def test_read_range_is_a_slice(store: Store) -> None:
    store.write_bytes("x", b"01234")

    for start, stop in [(0, 3), (2, 5), (3, 100), (5, 5), (7, 9)]:
        assert store.read_range("x", start, stop) == b"01234"[start:stop]


def test_upload_and_download_copy_whole_files(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(random.Random(1).randbytes(200_000))

    store.upload(source, "weights/model.bin")
    store.download("weights/model.bin", tmp_path / "copies" / "model.bin")

    assert (tmp_path / "copies" / "model.bin").read_bytes() == source.read_bytes()
    assert [p.name for p in (tmp_path / "copies").iterdir()] == ["model.bin"]


def test_store_travels_by_pickle_without_its_connection(store: Store) -> None:
    store.write_bytes("x", b"1")  # connected

    data = pickle.dumps(store)

    assert pickle.loads(data) == store
    assert pickle.loads(data).read_bytes("x") == b"1"
    assert len(data) < 400
    assert b"testsecret" not in data


def test_missing_file_names_the_place_and_does_not_retry(store: Store) -> None:
    for read in (store.read_bytes, store.size, store.open_read):
        with pytest.raises(StoreError, match=r"(?i)no such") as caught:
            read("nowhere.txt")
        assert store.join("nowhere.txt") in str(caught.value)
        assert not caught.value.retryable


def test_paths_that_leave_the_store_are_refused(store: Store) -> None:
    for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./x", "a\0b"]:
        for use in (store.read_bytes, store.exists, lambda p: store.write_bytes(p, b"")):
            with pytest.raises(StoreError, match="not a path below this store"):
                use(path)


def test_names_with_spaces_and_unicode_round_trip(store: Store) -> None:
    names = ["with space+plus%41.txt", "größe-图.txt"]
    for name in names:
        store.write_bytes(f"d/{name}", name.encode())

    assert {f.path: store.read_bytes(f.path).decode() for f in store.list()} == {
        f"d/{name}": name for name in names
    }


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("gs://bucket/x", "not supported"),
        ("http://host/x", "not supported"),
        ("s3://", "BUCKET"),
        ("s3:///key", "BUCKET"),
        ("s3://bucket/a/../b", "component"),
        ("file://host/x", "not supported"),
        ("", "empty"),
    ],
)
def test_unusable_urls_are_refused_before_any_work(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        open_store(url)


def test_credentials_in_the_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        open_store("s3://AKIA123:verysecret@bucket/x")

    assert "verysecret" not in str(caught.value)
    assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)


@pytest.mark.parametrize("options", [{"retries": -1}, {"timeout_s": 0.0}])
def test_open_store_refuses_impossible_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="retries >= 0"):
        open_store("x", **options)  # type: ignore[arg-type]


def test_open_file_splits_off_the_last_name(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"prompt")

    store, name = open_file(str(tmp_path / "p.csv"))

    assert store.read_bytes(name) == b"prompt"
    assert split_url("s3://bucket/a/b.csv") == ("s3://bucket/a", "b.csv")
    assert split_url("b.csv") == (".", "b.csv")
    assert split_url("/b.csv") == ("/", "b.csv")


def test_file_url_is_the_local_path(tmp_path: Path) -> None:
    assert open_store((tmp_path / "a b").as_uri()).url == str(tmp_path / "a b")
