"""Whole runs of prepare, in this process: sources of every kind, bad rows, resumes, S3, latents."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.prepare import plan, run
from jobs.prepare_config import PrepareSummary
from sdxl_core.contract.errors import ConfigError, JobError
from sdxl_core.data.buckets import TINY_BUCKETS
from sdxl_core.nets.autoencoder import encode_image
from sdxl_core.nets.weights import load_model
from sdxl_core.storage.image_files import decode_image
from sdxl_core.storage.stores import open_store
from tests.flow import prepare_kit as kit
from tests.micro_models import MicroModels
from tests.servers import S3Server, moto_s3

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("local_ray")]

NUM_GOOD = 36
ROWS = kit.all_rows(NUM_GOOD)
BAD = {key: reason for key, (reason, _) in kit.bad_rows().items()}
GOOD_KEYS = {row[0] for row in ROWS} - set(BAD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return kit.write_folder(tmp_path_factory.mktemp("folder") / "pictures", ROWS)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared") / "out"


@pytest.fixture(scope="module")
def summary(local_ray: None, folder: str, out: Path) -> PrepareSummary:
    """The folder, prepared once for all tests here."""
    return run(kit.settings(folder, out))


def test_prepare_folder_has_every_row_once_as_samples_or_with_its_reason(
    summary: PrepareSummary, out: Path
) -> None:
    kit.assert_sound(out, len(ROWS))
    assert {row["id"]: row["reason"] for row in kit.read_rejected(out)} == BAD
    samples = {row["id"]: row for row in kit.read_samples(out)}
    assert set(samples) == GOOD_KEYS
    assert summary.num_rows == len(ROWS)
    assert summary.num_samples == len(GOOD_KEYS)
    assert summary.num_rejected == len(BAD)
    assert summary.num_by_reason == Counter(str(reason) for reason in BAD.values())
    assert summary.num_failed == sum(not reason.is_filter for reason in BAD.values())
    assert summary.exit_code == 3
    for row in samples.values():
        size = row["target_height"], row["target_width"]
        assert size in TINY_BUCKETS
        assert decode_image(row["image"]).shape == (*size, 3)
    assert samples["good003"]["captions"] == ["picture 3", "another caption"]
    assert samples["good003"]["aesthetic"] == 3
    assert (samples["odd-exif"]["original_height"], samples["odd-exif"]["original_width"]) == (
        140,
        100,
    )
    noted = {key for key, row in samples.items() if row["notes"]}
    assert {"odd-exif", "odd-alpha", "odd-cmyk"} <= noted <= GOOD_KEYS - {"good000"}


@pytest.mark.usefixtures("summary")
def test_prepare_output_has_several_parts_in_an_order_other_than_the_source(out: Path) -> None:
    ids = [row["id"] for row in kit.read_samples(out)]
    assert len(list(out.glob("_parts/*.json"))) > 1
    assert ids != sorted(ids)
    events = [json.loads(line) for line in (out / "_events.jsonl").read_text().splitlines()]
    assert {event["span"] for event in events} == {"stage", "finish"}
    assert sum(event["num_rows"] for event in events if event["span"] == "finish") == len(ROWS)


@pytest.mark.usefixtures("summary")
def test_prepare_report_tells_counts_thin_buckets_and_shows_sheets(out: Path) -> None:
    report = json.loads((out / "_report.json").read_text())
    assert report["totals"]["num_samples"] == len(GOOD_KEYS)
    assert report["totals"]["num_by_reason"] == Counter(str(reason) for reason in BAD.values())
    page = (out / "report.html").read_text()
    for name in report["totals"]["num_by_bucket"]:
        assert (out / f"thumbnails/{name}.jpg").exists()
        assert f"thumbnails/{name}.jpg" in page
    assert any("--merge-thin" in warning for warning in report["warnings"])


def test_prepare_finished_output_does_nothing_again_even_without_its_source(
    summary: PrepareSummary, folder: str, out: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    moved = Path(folder).rename(Path(folder).with_name("moved"))
    try:
        again = run(kit.settings(folder, out, how={"tasks": 1}))
    finally:
        moved.rename(folder)
    assert again.num_parts_made_now == 0
    assert again.num_samples == summary.num_samples
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("summary")
def test_prepare_other_settings_or_another_source_are_refused(
    folder: str, out: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"crop: \"random\" -> \"center\""):
        run(kit.settings(folder, out, crop="center"))
    other = kit.write_folder(tmp_path / "other", ROWS[:3])
    with pytest.raises(ConfigError, match=r"was begun with other inputs .*\n  sources: "):
        run(kit.settings(other, out))


def test_prepare_part_whose_record_is_deleted_is_made_again_with_the_same_bytes(
    summary: PrepareSummary, folder: str, out: Path
) -> None:
    before = kit.file_hashes(out)
    (out / "_parts/00001.json").unlink()
    again = run(kit.settings(folder, out))
    assert again.num_parts_made_now == 1
    assert again.num_samples == summary.num_samples
    assert kit.file_hashes(out) == before
    kit.assert_sound(out, len(ROWS))


def test_prepare_plan_counts_what_the_run_makes_and_writes_nothing(
    summary: PrepareSummary, folder: str, tmp_path: Path
) -> None:
    shown = plan(kit.settings(folder, tmp_path / "none"))
    assert list((tmp_path / "none").rglob("*")) == []
    assert shown.values["num_rows"] == summary.num_rows
    assert shown.values["share_seen"] == 1
    # What shows only when all is decoded or compared.
    late = summary.num_by_reason["truncated_image"] + summary.num_by_reason["duplicate_exact"]
    assert shown.values["num_samples"] == summary.num_samples + late
    assert f"rows: {summary.num_rows}" in shown.describe()
    json.loads(shown.to_json())


def test_prepare_tars_give_the_same_samples_as_the_folder_and_survive_a_nasty_one(
    summary: PrepareSummary, out: Path, tmp_path: Path
) -> None:
    tars = kit.write_tars(tmp_path / "tars", ROWS, num_tars=3)
    tar, nasty_ids, nasty_reasons = kit.nasty_tar()
    (tmp_path / "nasty.tar").write_bytes(tar)
    config = kit.settings(
        f"{tars}/{{00000..00002}}.tar", tmp_path / "out", also=(f"{tmp_path}/nasty.tar@2.5",)
    )
    made = run(config)
    kit.assert_sound(config.out, made.num_rows)
    reasons = Counter(made.num_by_reason) - Counter(summary.num_by_reason)
    assert nasty_reasons <= reasons
    ours, theirs = kit.content(config.out), kit.content(out)
    ids = {row["id"] for row in kit.read_samples(config.out)}
    assert {key for key in ids if key.startswith("nasty/")} == nasty_ids
    assert "caption_latin1" in ours["nasty/latin"]["notes"]
    # Which of two equal pictures is left out depends on the order of the source.
    same = set(theirs) - {"good000", "zz-copy"}
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    sources = json.loads((tmp_path / "out/_plan.json").read_text())["sources"]
    assert [source["weight"] for source in sources] == [1.0, 2.5]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with moto_s3() as running:
        running.make_bucket("data")
        yield running


@pytest.mark.slow
@pytest.mark.s3
def test_prepare_table_on_s3_gives_the_same_samples_as_the_folder(
    summary: PrepareSummary, out: Path, server: S3Server, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    open_store("s3://data/in").write_bytes("table/a.parquet", kit.parquet_of(ROWS))
    command = kit.command("s3://data/in/table", "s3://data/out")
    from tests.flow.kit import run_command

    log = tmp_path / "log"
    assert run_command(command, log, server.env, timeout_s=400) == 3, log.read_text()[-3000:]
    kit.assert_sound("s3://data/out", len(ROWS))
    assert kit.content("s3://data/out") == kit.content(out)
    assert json.loads(log.read_text().splitlines()[-1])["num_rows"] == summary.num_rows


@pytest.mark.slow
def test_prepare_latents_are_those_of_the_pictures_and_text_those_of_the_captions(
    summary: PrepareSummary, folder: str, out: Path, tmp_path: Path, models: MicroModels
) -> None:
    config = kit.settings(
        folder, tmp_path / "out", latents=True, model=models.base, text=True,
        latents_dtype="float32", format="webdataset", how={"encoders": 1},
    )  # fmt: skip
    made = run(config)
    kit.assert_sound(config.out, len(ROWS))
    assert made.num_samples == summary.num_samples
    model = load_model(models.base)
    assert made.model_digest == model.digest
    events = [
        json.loads(line) for line in (tmp_path / "out/_events.jsonl").read_text().splitlines()
    ]
    told = [event["detail"] for event in events if event["span"] == "finish"]
    pace = re.compile(r"decode_s=0\.\d+ encode_s=\d+\.\d+ a picture, decode_threads=1 of 1")
    assert all(pace.fullmatch(detail) for detail in told)
    assert len(told) == made.num_parts
    pictures = {row["id"]: row for row in kit.read_samples(out)}
    for row in kit.read_samples(config.out)[:12]:
        rgb_HWC = decode_image(pictures[row["id"]]["image"])
        image_BCHW = torch.from_numpy(rgb_HWC.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            expected = encode_image(model.vae, image_BCHW)[0].numpy()
        found = np.frombuffer(row["moments"], np.float32).reshape(row["moments_shape"])
        np.testing.assert_allclose(found, expected, atol=1e-4)
        num_captions, num_tokens, width = row["text_shape"]
        assert (num_captions, num_tokens) == (len(row["captions"]), 77)
        assert len(row["text_states"]) == 4 * num_captions * num_tokens * width


def test_prepare_flags_for_crops_flips_scales_merging_and_duplicates_do_what_they_say(
    tmp_path: Path,
) -> None:
    again = kit.file_of(kit.picture(200, 260, seed=0), "JPEG", quality=60)
    thin = kit.file_of(kit.picture(100, 400, seed=500), "JPEG")
    rows = [
        *kit.good_rows(12),
        ("near", again, "good000 at another quality", {"aesthetic": 3}),
        ("high", kit.plain_file(150, 150), "too good", {"aesthetic": 9.5}),
        ("thin", thin, "alone in its bucket", {"aesthetic": 3}),
    ]
    source = kit.write_folder(tmp_path / "in", rows)
    config = kit.settings(
        source, tmp_path / "out", crops=2, flip=1.0, near_duplicates=6, multi_scale=("64x64",),
        max_upscale=1.0, max=("aesthetic=9",), image_format="png", merge_thin=4,
    )  # fmt: skip
    made = run(config)
    kit.assert_sound(config.out, len(rows))
    samples = {row["id"]: row for row in kit.read_samples(config.out)}
    assert kit.reasons(config.out) == {"duplicate_near": 1, "above_max": 1}
    assert made.exit_code == 0  # filters and duplicates are no damage
    assert set(samples) == {f"{key}#{n}" for key, *_ in [*rows[:12], rows[-1]] for n in range(2)}
    assert all(row["flip"] and row["upscale"] <= 1 for row in samples.values())
    assert all(row["image"].startswith(b"\x89PNG") for row in samples.values())
    sizes = {key: (row["target_height"], row["target_width"]) for key, row in samples.items()}
    assert sizes["good004#0"] == (64, 64)  # a picture of that size is not enlarged
    assert sizes["good002#0"] == (128, 128)
    assert sizes["thin#0"] == sizes["good003#0"]
    places = {name: (row["crop_top"], row["crop_left"]) for name, row in samples.items()}
    assert any(places[f"{key}#0"] != places[f"{key}#1"] for key, *_ in rows[:12])


@pytest.mark.usefixtures("summary")
def test_prepare_mostly_damaged_source_is_stopped_with_the_reasons(tmp_path: Path) -> None:
    page = (None, b"<html></html>", "a", {"aesthetic": 1})
    rows: list[kit.Row] = [(f"page{n:03d}", *page[1:]) for n in range(120)]
    source = kit.write_folder(tmp_path / "in", rows)
    config = kit.settings(source, tmp_path / "out", how={"max_failed_share": 0.05})
    with pytest.raises(JobError, match=r"rows are damaged \(100\.0%\).*not_an_image"):
        run(config)
    assert not (tmp_path / "out/_SUMMARY.json").exists()
