"""Sources listed in a TOML file are those that would be named one by one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_core.contract.errors import ConfigError
from sdxl_core.storage.source_plan import plan_sources
from sdxl_core.storage.sources import read_slice
from tests.sdxl_core.storage.source_files import tar_bytes, written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tar, a table with two columns of captions, and a loose picture with its JSON."""
    written(tmp_path / "shards" / "0.tar", tar_bytes([("a.jpg", b"A"), ("a.txt", b"from a tar")]))
    columns = {"image": [b"B"], "caption": ["one"], "title": ["another"]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    written(tmp_path / "photos" / "c.jpg", b"C")
    written(tmp_path / "photos" / "c.json", b'{"caption": "no", "alt": "of its own key"}')
    return tmp_path


def captions_of(plan_urls: list[str]) -> list[tuple[str, ...]]:
    plan = plan_sources(plan_urls)
    return [row.captions for n in range(plan.num_slices) for row in read_slice(plan.slice(n))]


def write_list(folder: Path, text: str) -> str:
    path = folder / "sources.toml"
    path.write_text(text)
    return str(path)


LISTED = """
[[source]]
url = "shards/{0..0}.tar"
weight = 2.5

[[source]]
url = "t.parquet"
caption_column = "title"

[[source]]
url = "photos"
kind = "folder"
caption_key = "alt"
weight = 3
"""


def test_each_source_of_a_list_has_its_own_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")  # relative places are beside the list, not where the command runs
    url = write_list(folder, LISTED)

    plan = plan_sources([url])

    assert [source.weight for source in plan.sources] == [2.5, 1.0, 3.0]
    assert [source.kind for source in plan.sources] == ["webdataset", "table", "folder"]
    assert captions_of([url]) == [("from a tar",), ("another",), ("of its own key",)]


def test_a_list_without_settings_is_the_input_that_its_sources_are(folder: Path) -> None:
    url = write_list(folder, '[[source]]\nurl = "shards"\nweight = 2\n[[source]]\nurl = "photos"')
    named = [f"{folder}/shards@2", f"{folder}/photos"]

    assert plan_sources([url]).digest == plan_sources(named).digest
    assert captions_of([url, f"{folder}/t.parquet"]) == captions_of([*named, f"{folder}/t.parquet"])


def test_settings_of_one_source_make_another_input(folder: Path) -> None:
    digests = {
        plan_sources([write_list(folder, f'[[source]]\nurl = "t.parquet"\n{line}')]).digest
        for line in ("", 'caption_column = "title"', 'caption_column = "caption"', "weight = 2")
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[source]]\nurl = 'photos'\nwieght = 2", "sources.toml.*wieght"),
        ("[[source]]\nweight = 2", "url.*required"),
        ("[[source]]\nurl = 'photos'\nweight = 0", "weight above 0"),
        ("[[source]]\nurl = 'photos'\nkind = 'tar'", "kind"),
        ("source = []", r"at least one \[\[source\]\]"),
        ("[[source]", "is not TOML"),
    ],
)
def test_a_list_that_cannot_be_is_refused_with_its_name(
    folder: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_sources([write_list(folder, text)])


def test_lists_that_are_not_there_or_not_local_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        plan_sources([str(tmp_path / "none.toml")])
    with pytest.raises(ConfigError, match="local file"):
        plan_sources(["s3://bucket/sources.toml"])
