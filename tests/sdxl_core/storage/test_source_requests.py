"""What reading a source from S3 costs, in requests that reach the server."""

import io
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_core.storage.source_plan import plan_sources
from sdxl_core.storage.sources import count_slice, read_slice
from sdxl_core.storage.stores import open_store
from tests.sdxl_core.storage.source_files import tar_bytes
from tests.servers import FlakyProxy, S3Server, flaky_proxy

pytestmark = pytest.mark.s3


@pytest.fixture
def proxy(moto: S3Server, moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """Counts the requests on their way to moto."""
    with flaky_proxy(moto.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def methods(proxy: FlakyProxy, name: str) -> Counter[str]:
    """Requests for the object ``name`` since the last time, by method."""
    found = Counter(text.split()[0] for text in proxy.requests if text.endswith(f"/{name}"))
    proxy.requests.clear()
    return found


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [b"A"] * 3, "caption": ["c"] * 3}), sink)
    return sink.getvalue()


SOURCES = {
    "a.tar": tar_bytes([("a.jpg", b"A"), ("a.txt", b"t")]),
    "a.parquet": parquet_bytes(),
    "a.jsonl": b'{"file_name": "http://elsewhere/b.jpg", "caption": "c"}\n',
}


@pytest.mark.parametrize("name", SOURCES)
def test_file_is_looked_at_once_and_fetched_once_each_time_it_is_opened(
    name: str, moto_url: str, proxy: FlakyProxy
) -> None:
    open_store(moto_url).write_bytes(name, SOURCES[name])
    piece = plan_sources([moto_url]).slice(0)
    proxy.requests.clear()

    count_slice(piece)
    assert methods(proxy, name) == {"HEAD": 1, "GET": 1}

    for _ in read_slice(piece):
        pass
    found = methods(proxy, name)
    assert found["HEAD"] == 1
    assert found["GET"] <= (3 if name.endswith("parquet") else 1)  # its footer, then its columns


def test_picture_and_caption_of_a_folder_are_one_request_each(
    moto_url: str, proxy: FlakyProxy
) -> None:
    store = open_store(moto_url)
    store.write_bytes("a.jpg", b"A")
    store.write_bytes("a.txt", b"t")
    piece = plan_sources([moto_url]).slice(0)
    proxy.requests.clear()

    count_slice(piece)
    assert proxy.requests == []  # the listing gave the names
    assert [row.problem for row in read_slice(piece)] == [None]
    assert sorted(text.split()[0] for text in proxy.requests) == ["GET", "GET"]


def test_archives_of_a_range_are_looked_at_once_each_when_they_are_planned(
    moto_url: str, proxy: FlakyProxy
) -> None:
    for number in range(5):
        open_store(moto_url).write_bytes(f"{number:03d}.tar", SOURCES["a.tar"])
    proxy.requests.clear()

    plan = plan_sources([f"{moto_url}/{{000..004}}.tar"])

    looked_at = sorted(text[-7:] for text in proxy.requests if text.startswith("HEAD"))
    assert looked_at[-5:] == [f"{number:03d}.tar" for number in range(5)]
    assert len(looked_at) == 6  # and one for a file that might be called like the range
    assert [plan.slice(number).num_bytes for number in range(5)] == [len(SOURCES["a.tar"])] * 5
