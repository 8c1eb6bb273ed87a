"""Stores to test against: a folder, and places on the two loopback servers."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdxl_core.storage.stores import Store, open_store
from tests.servers import S3Server, moto_s3, seaweed_s3

BUCKET = "test-bucket"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with moto_s3() as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def seaweed() -> Iterator[S3Server]:
    with seaweed_s3() as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture
def moto_url(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://…`` of an empty place on moto, with the environment set for it."""
    return _new_place(moto, monkeypatch)


@pytest.fixture
def seaweed_url(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://…`` of an empty place on SeaweedFS, with the environment set for it."""
    return _new_place(seaweed, monkeypatch)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind: what holds for one holds for the other."""
    if request.param == "local":
        return open_store(tmp_path / "out")
    return open_store(request.getfixturevalue("moto_url") + "/some/prefix")


def _new_place(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/test-{next(_numbers)}"
