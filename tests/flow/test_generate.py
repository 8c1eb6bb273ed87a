"""Whole runs of generate, in this process, on toy models and a table with rows of every kind."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from cluster.preparation import read_table_plan, survey_table
from jobs.fsck import FsckConfig
from jobs.fsck import run as fsck
from jobs.generate import plan, run
from jobs.generate_config import GenerateSummary
from jobs.verify import VerifyConfig, sample_rows
from jobs.verify import run as verify
from sdxl_core.contract.errors import ConfigError, JobError, SdxlError, WeightsError
from sdxl_core.storage.image_files import decode_image, read_parameters
from sdxl_core.storage.stores import open_store
from tests.flow import kit, mixed_table
from tests.micro_models import BROKEN_WORD, MicroModels, write_broken_model

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    return mixed_table.write_mixed_table(tmp_path_factory.mktemp("table") / "mixed.jsonl")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixed") / "out"


@pytest.fixture(scope="module")
def summary(local_ray: None, models: MicroModels, table: str, out: Path) -> GenerateSummary:
    """The mixed table, made once for all tests here."""
    return run(kit.settings(models, table, out))


def test_generate_mixed_table_has_every_row_once_with_its_reason(
    summary: GenerateSummary, out: Path
) -> None:
    rows = kit.read_rows(out)
    assert [row["input_row"] for row in rows] == list(range(mixed_table.NUM_ROWS))
    failed = [row for row in rows if row["status"] == "failed"]
    made = {row["prompt"]: row for row in rows if row["status"] == "ok"}
    good_ids = [row["id"] for row in mixed_table.GOOD_ROWS if "id" in row]
    nameless = made["no id of its own"]
    assert nameless["id"] == str(nameless["input_row"])
    assert {row["id"] for row in rows if row["status"] == "ok"} == {*good_ids, nameless["id"]}
    assert len(failed) == mixed_table.NUM_BAD
    assert all(row["note"] for row in rows if row["reason"] != "unreadable_row")
    by_reason: dict[str, list[str]] = {}
    for row in failed:
        by_reason.setdefault(row["reason"], []).append(row["detail"])
    for reason, column, _ in mixed_table.BAD_ROWS:
        assert any(f"column '{column}'" in detail for detail in by_reason[reason]), reason
    assert len(by_reason["unreadable_row"]) == len(mixed_table.BROKEN_LINES)
    assert (summary.num_rows, summary.num_failed) == (mixed_table.NUM_ROWS, mixed_table.NUM_BAD)
    assert summary.exit_code == 3


def test_generate_images_hold_their_size_and_parameters(
    summary: GenerateSummary, out: Path
) -> None:
    rows = {row["id"]: row for row in kit.read_rows(out) if row["status"] == "ok"}
    for name, size in (
        ("wide", (64, 128, 3)),
        ("refined", (64, 64, 3)),
        ("ü/λ ../..", (64, 64, 3)),
    ):
        file = out / rows[name]["path"]
        assert file.resolve().is_relative_to(out.resolve())
        data = file.read_bytes()
        assert decode_image(data).shape == size
        assert read_parameters(data)["prompt"] == rows[name]["prompt"]
    assert rows["long"]["num_tokens_cut"] > 0
    assert "cut" in rows["long"]["detail"]
    assert rows["refined"]["refiner_digest"]
    assert rows["guided"]["refiner_digest"] is None
    assert len({row["sha256"] for row in rows.values() if row["sha256"]}) == mixed_table.NUM_GOOD


def test_generate_output_passes_fsck_and_has_events_of_every_stage(
    summary: GenerateSummary, out: Path
) -> None:
    found = fsck(FsckConfig(out=str(out)))
    assert found.exit_code == 0, found.to_json()
    events = [json.loads(line) for line in (out / "_events.jsonl").read_text().splitlines()]
    assert {event["span"] for event in events} >= {"read", "encode", "denoise", "refine", "write"}
    assert {event["part"] for event in events} == set(range(summary.num_parts))


def test_generate_finished_run_is_not_touched_again(
    summary: GenerateSummary, models: MicroModels, table: str, out: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in out.glob("[it]*/**/*")}
    again = run(kit.settings(models, table, out, how={"denoisers": 3}))
    assert again.num_parts_made_now == 0
    assert (again.num_rows, again.num_by_reason) == (summary.num_rows, summary.num_by_reason)
    assert {path: path.stat().st_mtime_ns for path in out.glob("[it]*/**/*")} == before


def test_generate_lost_summary_is_written_again(
    summary: GenerateSummary, models: MicroModels, table: str, out: Path
) -> None:
    (out / "_SUMMARY.json").unlink()
    run(kit.settings(models, table, out))
    assert json.loads((out / "_SUMMARY.json").read_text())["num_rows"] == summary.num_rows


def test_generate_other_settings_or_inputs_are_refused_with_the_difference(
    summary: GenerateSummary, models: MicroModels, table: str, out: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1"):
        run(kit.settings(models, table, out, seed=1))
    changed = tmp_path / "mixed.jsonl"
    changed.write_text(Path(table).read_text().replace("a red cube", "a red ball"))
    with pytest.raises(ConfigError, match=r"prompts: \w+ -> \w+"):
        run(kit.settings(models, str(changed), out))
    with pytest.raises(ConfigError, match=r"refiner"):
        run(kit.settings(models, table, out, refiner="none"))
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_text(Path(table).read_text())
    assert run(kit.settings(models, str(moved), out)).num_parts_made_now == 0


def test_generate_output_table_is_a_valid_input_table(summary: GenerateSummary, out: Path) -> None:
    survey = survey_table(read_table_plan(str(out), 8), defaults=kit.DEFAULTS, run_seed=0)
    assert survey.num_rows == mixed_table.NUM_ROWS
    assert survey.num_invalid == mixed_table.NUM_BAD


def test_generate_images_do_not_depend_on_workers_parts_or_container(
    summary: GenerateSummary, models: MicroModels, table: str, out: Path, tmp_path: Path
) -> None:
    spread = {"denoisers": 2, "refiners": 1, "parts_in_flight": 1, "writers": 2}
    other = kit.settings(
        models, table, tmp_path / "other", how=spread, rows_per_part=7, format="webdataset"
    )
    run(other)
    assert kit.hashes(tmp_path / "other") == kit.hashes(out)
    assert fsck(FsckConfig(out=other.out)).exit_code == 0


@pytest.mark.slow
def test_generate_row_that_becomes_nan_fails_alone(
    summary: GenerateSummary, models: MicroModels, out: Path, tmp_path: Path
) -> None:
    rows = [{"id": "guided", "prompt": "a red cube", "negative_prompt": "blue"}]
    rows += [{"id": f"nan{n}", "prompt": f"a {BROKEN_WORD} {n}"} for n in range(2)]
    rows += [{"id": "unguided", "prompt": "a red cube", "guidance_scale": 1.0}]
    rows += [{"id": "needs-refiner", "prompt": "a red cube", "refiner": True}]
    broken = write_broken_model(tmp_path / "broken")
    config = kit.settings(
        models,
        kit.write_jsonl(tmp_path / "p.jsonl", rows),
        tmp_path / "out",
        model=broken,
        refiner="none",
    )
    planned = plan(config)
    assert "1 cannot be used {'invalid_handoff': 1}" in planned.describe()
    assert "p.jsonl row 4 column refiner: " in planned.describe()
    assert {work["refiner"] for work in planned.values["work"]} == {False}
    done = {row["id"]: row for row in (run(config) and kit.read_rows(config.out))}
    for n in range(2):
        assert done[f"nan{n}"]["reason"] == "non_finite_image"
        assert "NaN or infinity in float32" in done[f"nan{n}"]["detail"]
        assert done[f"nan{n}"]["path"] is None
    assert done["needs-refiner"]["reason"] == "invalid_handoff"
    assert "--refiner" in done["needs-refiner"]["detail"]
    sound = kit.hashes(out)
    assert {done["guided"]["status"], done["unguided"]["status"]} == {"ok"}
    assert done["guided"]["num_slots"] != 0
    assert sound.keys() >= {"guided", "unguided"}


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("no_column.csv", b"id,text\n1,a\n", r"no_column\.csv: no column 'prompt'.*Rename 'text'"),
        ("empty.csv", b"", r"empty\.csv"),
        ("header.csv", b"prompt\n", r"header\.csv: the table has no rows"),
        ("binary.jsonl", b"PAR1" + b"\0" * 60, r"binary\.jsonl: expected jsonl.*found parquet"),
        ("torn.parquet", b"PAR1 not really PAR1", r"torn\.parquet"),
        ("both.csv", b"prompt,p\na,b\n", r"both\.csv: columns 'p' and 'prompt' mean the same"),
        ("table.xlsx", b"PK\x03\x04", r"table\.xlsx: found a file named \*\.xlsx"),
    ],
)
def test_generate_unusable_table_is_refused_by_name(
    name: str, content: bytes, found: str, models: MicroModels, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SdxlError, match=found) as refusal:
        run(kit.settings(models, str(tmp_path / name), tmp_path / "out"))
    assert not isinstance(refusal.value, JobError)
    assert not list((tmp_path / "out").glob("_*"))


def test_generate_mostly_invalid_table_is_refused_before_any_work(
    models: MicroModels, tmp_path: Path
) -> None:
    rows = kit.plain_rows(90) + [{"id": f"b{n}", "prompt": "p", "height": 65} for n in range(30)]
    prompts = kit.write_csv(tmp_path / "p.csv", rows)
    with pytest.raises(ConfigError, match=r"30 of 120 rows.*25\.0%.*p\.csv row 90 column height"):
        run(kit.settings(models, prompts, tmp_path / "out"))


def test_generate_plan_of_a_table_without_a_usable_row_says_so(
    models: MicroModels, tmp_path: Path
) -> None:
    prompts = kit.write_csv(tmp_path / "p.csv", [{"prompt": "p", "height": 65}])
    shown = plan(kit.settings(models, prompts, tmp_path / "out"))
    assert "1 cannot be used" in shown.describe()
    assert not list((tmp_path / "out").glob("_*"))


def test_verify_true_output_passes_and_a_flipped_byte_is_found(
    summary: GenerateSummary, out: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    threads = torch.get_num_threads()
    config = VerifyConfig(out=str(copy), num_rows=mixed_table.NUM_GOOD)
    found = verify(config)
    assert (found.exit_code, found.num_rows_made_again) == (0, mixed_table.NUM_GOOD)
    assert json.loads(found.to_json())["differences"] == []

    wide = next(row for row in kit.read_rows(copy) if row["id"] == "wide")
    image = bytearray((copy / wide["path"]).read_bytes())
    image[len(image) // 2] ^= 1
    (copy / wide["path"]).write_bytes(image)
    found = verify(dataclasses.replace(config, checksums=False))
    assert found.exit_code == 3
    assert len(found.differences) == 1
    assert f"row {wide['input_row']} (id 'wide'" in found.differences[0]
    assert "CPU type" in json.loads(found.to_json())["hint"]
    assert "SHA-256" in verify(dataclasses.replace(config, num_rows=0)).check.problems[0]
    torch.set_num_threads(threads)


def test_verify_weights_that_are_not_those_of_the_run_are_refused(
    summary: GenerateSummary, out: Path, tmp_path: Path
) -> None:
    other = write_broken_model(tmp_path / "other")
    with pytest.raises(WeightsError, match=r"the run's were .*--model"):
        verify(VerifyConfig(out=str(out), num_rows=1, checksums=False, model=other))


def test_verify_sample_has_no_row_twice_and_reaches_every_stretch(
    summary: GenerateSummary, out: Path
) -> None:
    for num_rows in (1, 3, mixed_table.NUM_GOOD, 1000):
        rows = [row["input_row"] for row in sample_rows(open_store(out), num_rows, seed=5)]
        assert len(set(rows)) == len(rows) == min(num_rows, mixed_table.NUM_GOOD)
        assert rows == sorted(rows)
