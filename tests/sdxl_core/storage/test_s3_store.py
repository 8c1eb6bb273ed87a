"""S3 when it does not work: wrong places, refused credentials, lost connections."""

import dataclasses
import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from sdxl_core.contract.errors import StoreError
from sdxl_core.storage.s3_store import S3Store
from sdxl_core.storage.store_errors import redact
from sdxl_core.storage.store_paths import split_s3_url
from sdxl_core.storage.stores import open_store
from tests.servers import SECRET_KEY, FlakyProxy, S3Server, flaky_proxy, free_port

pytestmark = pytest.mark.s3


@pytest.fixture
def proxy(moto: S3Server, moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    with flaky_proxy(moto.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def test_missing_bucket_is_told_at_once(moto_url: str) -> None:
    open_store(moto_url).check()  # the connection itself takes a while to set up
    for use in (lambda s: s.check(), lambda s: s.list(), lambda s: s.write_bytes("x", b"")):
        started_s = time.monotonic()
        with pytest.raises(StoreError, match="no such bucket") as caught:
            use(open_store("s3://not-there/x"))
        assert not caught.value.retryable
        assert time.monotonic() - started_s < 2


def test_endpoint_where_nothing_listens_is_told_in_bounded_time(
    moto_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    started_s = time.monotonic()

    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL") as caught:
        open_store(moto_url).check()

    assert endpoint in str(caught.value)
    assert caught.value.retryable
    assert time.monotonic() - started_s < 10


def test_malformed_endpoint_is_a_lasting_failure(
    moto_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")

    with pytest.raises(StoreError, match="check AWS_ENDPOINT_URL") as caught:
        open_store(moto_url).check()

    assert not caught.value.retryable


def test_no_credentials_is_told(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")

    with pytest.raises(StoreError, match="no credentials found") as caught:
        open_store(moto_url).check()

    assert not caught.value.retryable


def test_refused_credentials_are_told_without_showing_them(
    seaweed_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    open_store(seaweed_url).write_bytes("x", b"1")
    wrong, token = "wrong-secret-0123456789", "session-token-0123456789"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
    store = open_store(seaweed_url)

    messages = [str(_failure_of(use)) for use in _uses(store)]
    monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    messages += [str(_failure_of(use)) for use in _uses(store)]
    failure = _failure_of(store.check)
    logging.getLogger(__name__).error("as a job would log it", exc_info=failure)

    assert all("AWS_SECRET_ACCESS_KEY" in message for message in messages)
    told = "\n".join(messages) + caplog.text
    for secret in (SECRET_KEY, wrong, token):
        assert secret not in told
        assert secret not in repr(store)


def test_short_outage_is_bridged_by_retries(proxy: FlakyProxy, moto_url: str) -> None:
    store = open_store(moto_url)
    store.write_bytes("x", b"1")

    proxy.mode = "refuse"
    proxy.cut()
    num_before = proxy.num_connections
    timer = _later(0.7, lambda: setattr(proxy, "mode", "ok"))
    store.write_bytes("y", b"2")
    timer.join()

    assert proxy.num_connections > num_before + 1  # it did fail first
    assert open_store(moto_url).read_bytes("y") == b"2"


def test_connection_lost_in_the_middle_of_an_object_is_read_again_whole(
    proxy: FlakyProxy, moto_url: str
) -> None:
    data = random.Random(0).randbytes(5_000_000)
    store = open_store(moto_url)
    store.write_bytes("big", data)
    proxy.cut_after_bytes = 1_000_000
    proxy.num_cuts_left = 2

    assert store.read_bytes("big") == data

    assert proxy.num_cuts_left == 0
    proxy.num_cuts_left = 2
    with store.open_read("big") as file:
        assert b"".join(iter(lambda: file.read(300_000), b"")) == data
    assert proxy.num_cuts_left == 0


def test_outage_that_lasts_ends_in_a_retryable_error_in_bounded_time(
    proxy: FlakyProxy, moto_url: str
) -> None:
    store = open_store(moto_url, retries=2)
    store.write_bytes("x", b"1")
    proxy.mode = "refuse"
    proxy.cut()
    started_s = time.monotonic()

    with pytest.raises(StoreError) as caught:
        store.read_bytes("x")

    assert caught.value.retryable
    assert "run the same command again" in str(caught.value)
    assert time.monotonic() - started_s < 5


def test_server_that_never_answers_is_given_up_after_the_timeout(
    proxy: FlakyProxy, moto_url: str
) -> None:
    store = open_store(moto_url, retries=1, timeout_s=0.5)
    proxy.mode = "hang"
    started_s = time.monotonic()

    with pytest.raises(StoreError, match=r"(?i)timeout") as caught:
        store.read_bytes("x")

    assert caught.value.retryable
    assert time.monotonic() - started_s < 6


def test_listing_of_more_than_one_page_is_complete(moto_url: str) -> None:
    store = dataclasses.replace(S3Store.at(moto_url), list_page_keys=3)
    paths = [f"_parts/{n:05d}.json" for n in range(10)]
    for path in paths:
        store.write_bytes(path, b"{}")

    assert [f.path for f in store.list("_parts")] == paths


@pytest.mark.slow
def test_large_object_goes_up_in_parts_and_comes_back_whole(moto_url: str) -> None:
    data = random.Random(2).randbytes(1_000_000) * 110
    store = open_store(moto_url, timeout_s=60)

    store.write_bytes("shard.tar", data)

    assert store.size("shard.tar") == len(data)
    assert store.read_range("shard.tar", 52_428_790, 52_428_810) == data[52_428_790:52_428_810]


def test_whole_protocol_works_on_seaweedfs(seaweed_url: str) -> None:
    store = open_store(seaweed_url + "/deep/prefix")

    store.check()
    store.write_bytes("a/1", b"one")
    store.write_bytes("a/2", b"two")
    store.delete("a/1")

    assert [f.path for f in store.list()] == ["a/2"]
    assert store.read_bytes("a/2") == b"two"
    assert store.open_read("a/2").read(2) == b"tw"
    assert [store.read_range("a/2", *span) for span in ((1, 9), (3, 4), (7, 9))] == [
        b"wo",
        b"",
        b"",
    ]


def test_gallery_files_carry_the_type_that_a_browser_needs(moto_url: str) -> None:
    store = open_store(moto_url)
    store.write_bytes("gallery.html", b"<html>")

    bucket, prefix = split_s3_url(moto_url)
    filesystem = store._s3fs()  # type: ignore[attr-defined]
    answer = filesystem.call_s3("head_object", Bucket=bucket, Key=f"{prefix}/gallery.html")

    assert answer["ContentType"] == "text/html"


def test_s3_without_the_extra_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from sdxl_core.storage.stores import open_store\n"
        "from sdxl_core.contract.errors import ConfigError\n"
        "open_store('/tmp')\n"
        "try: open_store('s3://bucket')\n"
        "except ConfigError as error: sys.exit('pip install sdxl-ray[s3]' not in str(error))\n"
        "sys.exit(2)"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_importing_the_stores_does_not_import_s3fs() -> None:
    program = "import sys, sdxl_core.storage.stores; sys.exit('s3fs' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "http://user:hunter22@host:9000/x",
        "https://h/x?X-Amz-Credential=hunter22&X-Amz-Signature=hunter22",
        "aws_secret_access_key=hunter22, region=eu",
    ],
)
def test_redact_cuts_out_what_looks_like_a_credential(text: str) -> None:
    assert "hunter22" not in redact(text)
    assert "***" in redact(text)


def _uses(store: object) -> list[object]:
    assert isinstance(store, S3Store)
    return [
        store.check,
        lambda: store.read_bytes("x"),
        lambda: store.write_bytes("y", b"1"),
        lambda: store.exists("x"),
        lambda: store.list(),
    ]


def _failure_of(use: object) -> StoreError:
    with pytest.raises(StoreError) as caught:
        use()  # type: ignore[operator]
    assert not caught.value.retryable
    return caught.value


def _later(delay_s: float, action: object) -> threading.Timer:
    timer = threading.Timer(delay_s, action)  # type: ignore[arg-type]
    timer.start()
    return timer
