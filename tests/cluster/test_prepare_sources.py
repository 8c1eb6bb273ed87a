"""Sources that change or break while prepare is at them: in = samples + rejected, or it says why.

Whole runs, all passes, in this process and without Ray.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.prepare_count import judge_headers
from jobs.prepare_options import find_sources, work_of
from sdxl_core.contract.errors import ConfigError, JobError
from sdxl_core.storage.local_store import LocalStore
from sdxl_core.storage.parts import committed_parts
from sdxl_core.storage.staged_parts import staging_store
from sdxl_core.storage.stores import open_store
from tests.cluster.prepare_here import prepare_here
from tests.flow import prepare_kit as kit
from tests.servers import flaky_proxy, moto_s3

ROWS = kit.good_rows(8)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)


def write_csv(folder: Path) -> str:
    """A table that points to the pictures of a folder."""
    kit.write_folder(folder / "pictures", ROWS)
    lines = [
        f'pictures/{key}.jpg,"{caption}",{more["aesthetic"]}' for key, _, caption, more in ROWS
    ]
    (folder / "a.csv").write_text("\n".join(["file_name,caption,aesthetic", *lines]))
    return str(folder / "*.csv")


def write_parquet(folder: Path) -> str:
    folder.mkdir()
    (folder / "a.parquet").write_bytes(kit.parquet_of(ROWS[:4]))
    (folder / "b.parquet").write_bytes(kit.parquet_of(ROWS[4:]))
    return str(folder)


@pytest.mark.parametrize("suffix", ["jpg", "txt", "json"])
def test_file_of_a_folder_that_disappears_after_counting_is_a_rejected_row(
    suffix: str, tmp_path: Path
) -> None:
    source = kit.write_folder(tmp_path / "in", ROWS)
    config = kit.settings(source, tmp_path / "out", rows_per_slice=3)
    gone = Path(source) / f"good005.{suffix}"

    made = prepare_here(config, once_counted=gone.unlink)

    assert (made.num_rows, made.num_samples, made.exit_code) == (len(ROWS), len(ROWS) - 1, 3)
    kit.assert_sound(config.out, len(ROWS))
    (row,) = kit.read_rejected(config.out)
    assert (row["id"], row["reason"]) == ("good005", "file_missing")
    assert str(gone) in row["detail"]


def test_picture_that_a_table_points_to_and_that_disappears_is_a_rejected_row(
    tmp_path: Path,
) -> None:
    config = kit.settings(write_csv(tmp_path / "in"), tmp_path / "out")
    gone = tmp_path / "in/pictures/good002.jpg"

    kit.assert_sound(config.out, prepare_here(config, once_counted=gone.unlink).num_rows)

    (row,) = kit.read_rejected(config.out)
    assert row["reason"] == "file_missing"
    assert str(gone) in row["detail"]


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda folder: kit.write_tars(folder, ROWS, num_tars=3), "00001.tar"),
        (write_parquet, "b.parquet"),
        (write_csv, "a.csv"),
    ],
)
def test_archive_or_table_that_disappears_stops_the_job_until_it_is_back(
    write: Callable[[Path], str], name: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "in")
    file, away = tmp_path / "in" / name, tmp_path / name
    config = kit.settings(source, tmp_path / "out")
    undisturbed = kit.settings(source, tmp_path / "undisturbed")
    prepare_here(undisturbed)

    with pytest.raises(JobError, match="No such file or directory") as stopped:
        prepare_here(config, once_counted=lambda: file.rename(away))
    assert re.match(rf"slice \d \({file}.*\): cannot read {file}", str(stopped.value))
    staged = committed_parts(staging_store(open_store(config.out)))
    with pytest.raises(ConfigError, match=r"begun with other inputs|found none"):
        prepare_here(config)  # it is still gone
    away.rename(file)
    kit.assert_sound(config.out, prepare_here(config).num_rows)

    assert len(staged) < 3
    assert kit.file_hashes(config.out) == kit.file_hashes(undisturbed.out)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda data: data + b" ", "was changed after it was counted: found"),
        # The same size, so that only the number of rows tells: its first header is damaged.
        (lambda data: data.replace(b"good000.jpg", b"good003.jpg"), "1 rows came out, but 5 were"),
    ],
)
def test_archive_that_changes_after_counting_stops_the_job_with_its_name(
    change: Callable[[bytes], bytes], found: str, tmp_path: Path
) -> None:
    source = kit.write_tars(tmp_path / "in", ROWS[:5], num_tars=1)
    file = tmp_path / "in/00000.tar"
    config = kit.settings(source, tmp_path / "out")

    with pytest.raises(JobError, match=found) as stopped:
        prepare_here(config, once_counted=lambda: file.write_bytes(change(file.read_bytes())))

    assert str(stopped.value).startswith(f"slice 0 ({file})")
    assert not committed_parts(open_store(config.out))


@pytest.mark.parametrize(("source", "out"), [("in", "in/out"), ("in", "in"), ("o/in/*.jpg", "o")])
def test_output_inside_of_its_source_or_around_it_is_refused(
    source: str, out: str, tmp_path: Path
) -> None:
    kit.write_folder(tmp_path / source.removesuffix("/*.jpg"), ROWS[:1])
    with pytest.raises(ConfigError, match="lie one inside the other"):
        find_sources(kit.settings(tmp_path / source, tmp_path / out))
    assert find_sources(kit.settings(tmp_path / source, tmp_path / "in-out")).num_slices == 1


def test_caption_with_half_a_surrogate_pair_is_spelled_out_and_no_survey_minds_it(
    tmp_path: Path,
) -> None:
    key, image, _, more = ROWS[0]
    odd = {**more, "caption": ["a \ud83d", "b"], "alt": "\udc00"}
    source = kit.write_folder(tmp_path / "in", [(key, image, None, odd), *ROWS[1:3]])
    config = kit.settings(source, tmp_path / "out")
    work = work_of(config, find_sources(config))

    (totals,) = judge_headers(work, [0], None)
    made = prepare_here(config)

    assert (totals.num_samples, made.num_samples, made.num_rows) == (3, 3, 3)
    row = next(row for row in kit.read_samples(config.out) if row["id"] == key)
    assert row["captions"] == ["a \\ud83d", "b"]
    assert json.loads(row["metadata"])["alt"] == "\udc00"


@pytest.mark.s3
def test_s3_that_breaks_off_in_the_middle_of_archives_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*ROWS, *(row for _, row in kit.bad_rows().values())]
    tars = kit.write_tars(tmp_path / "in", rows, num_tars=2)
    undisturbed = kit.settings(f"{tars}/*.tar", tmp_path / "out")
    made = prepare_here(undisturbed)
    with moto_s3() as server, flaky_proxy(server.port) as proxy:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        kit.upload(open_store(server.make_bucket("data")), tmp_path / "in", "in")
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.cut_after_bytes, proxy.num_cuts_left = 30_000, 5
        config = kit.settings("s3://data/in/*.tar", "s3://data/out", how={"retries": 6})

        assert prepare_here(config).num_by_reason == made.num_by_reason

        assert proxy.num_cuts_left == 0
        proxy.cut_after_bytes = None
        kit.assert_sound(config.out, len(rows))
        assert kit.content(config.out) == kit.content(undisturbed.out)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


@pytest.mark.parametrize(
    ("output_format", "stride"),
    [("parquet", 3), pytest.param("webdataset", 1, marks=[pytest.mark.slow])],
)
@pytest.mark.timeout(400)
def test_run_that_is_killed_before_any_of_its_writes_or_deletions_is_resumed_byte_for_byte(
    output_format: str, stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = kit.write_folder(tmp_path / "in", [*ROWS[:4], *kit.all_rows(0)[-3:]])
    more = {"rows_per_slice": 4, "group_bytes": 40_000, "format": output_format}
    num_left = [1 << 30]

    def killed_in_time(method: str) -> None:
        real = getattr(LocalStore, method)

        def act(self: LocalStore, path: str, *data: bytes) -> None:
            if num_left[0] == 0:
                raise Killed
            num_left[0] -= 1
            real(self, path, *data)

        monkeypatch.setattr(LocalStore, method, act)

    killed_in_time("write_bytes")
    killed_in_time("delete")
    undisturbed = kit.settings(source, tmp_path / "undisturbed", **more)
    made = prepare_here(undisturbed)
    num_steps = (1 << 30) - num_left[0]
    expected = kit.file_hashes(undisturbed.out)

    for step in range(0, num_steps, stride):
        config = kit.settings(source, tmp_path / f"out{step}", **more)
        num_left[0] = step
        with pytest.raises(Killed):
            prepare_here(config)
        num_left[0] = 1 << 30
        prepare_here(config)
        kit.assert_sound(config.out, made.num_rows)
        assert kit.file_hashes(config.out) == expected
    assert num_steps > 20
    assert len(committed_parts(open_store(undisturbed.out))) > 1
