from pathlib import Path

import pytest

from cluster.ledger import Ledger, RowTally, RunPlan, open_models
from cluster.progress import Progress
from cluster.resources import Flops
from cluster.telemetry import Event, EventLog
from sdxl_core.contract.errors import ConfigError, StoreError
from sdxl_core.storage.parts import read_summary
from sdxl_core.storage.stores import open_store
from tests.cluster.committed_parts import FAILED_FIRST, begun, write_prompts
from tests.micro_models import MicroModels

PLAN = RunPlan(
    fingerprint="f",
    identities={},
    numerics_name="exact:cpu:float32:vae-float32:threads-1",
    survey={},
    flops=Flops(base=0.0, refiner=0.0, decode=0.0, encode=0.0),
    slots={},
    duplicates={},
)


def test_tally_adds_parts_by_status_and_reason() -> None:
    tally = RowTally()
    tally.add(4, {"ok": 3, "failed": 1}, {"invalid_size": 1})
    tally.add(4, {"ok": 2, "failed": 2}, {"invalid_size": 1, "invalid_id": 1})
    tally.add(4, {"ok": 4}, {})
    assert (tally.num_rows, tally.num_failed) == (12, 3)
    assert tally.num_by_reason == {"invalid_size": 2, "invalid_id": 1}


def test_open_models_base_and_refiner_swapped_are_told_apart(models: MicroModels) -> None:
    opened = open_models(
        models.base, models.refiner, variant=None, dtype="float16", vae_dtype="auto"
    )
    assert (opened.base.preset.kind, opened.vae_dtype) == ("base", "float32")
    assert opened.refiner is not None
    assert opened.refiner.preset.kind == "refiner"
    assert opened.unet_bytes > 1000
    with pytest.raises(ConfigError, match=r"--model .*refiner: is a refiner"):
        open_models(models.refiner, None, variant=None, dtype="float32", vae_dtype="auto")
    with pytest.raises(ConfigError, match=r"--refiner .*base: is a base"):
        open_models(models.base, models.base, variant=None, dtype="float32", vae_dtype="auto")


def event(span: str, part: int, num_rows: int = 4) -> Event:
    return Event(span=span, part=part, num_rows=num_rows, seconds=1.0, worker="w")


def test_event_log_of_a_resumed_run_goes_on_after_the_lines_of_the_first(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for part in range(3):
        log = EventLog(store)
        log.append([event("write", part)])
        log.flush()
    lines = (tmp_path / "_events.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert ['"part": 0' in lines[0], '"part": 2' in lines[2]] == [True, True]


def test_event_log_that_cannot_be_put_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the output should be")
    store = open_store(tmp_path / "file")
    with pytest.raises(StoreError):
        store.write_bytes("x", b"")
    log = EventLog(store)
    log.append([event("write", 0)])
    log.flush()


def test_progress_line_tells_rows_failures_and_rates() -> None:
    progress = Progress(20, num_refined=5)
    assert "no part finished yet" in progress.line()
    progress.add_events([event("denoise", 0, 8), event("refine", 0, 2)])
    progress.add_part(8, 3)
    line = progress.line()
    progress.close()
    assert line.startswith("8/20 rows, 3 failed, ")
    assert "base 8/20" in line
    assert "refine 2/5" in line


def test_ledger_counts_failed_rows_of_finished_parts_as_work_when_they_are_tried_again(
    tmp_path: Path,
) -> None:
    work, store = begun(write_prompts(tmp_path), tmp_path / "out", "files")
    num_failed = len(FAILED_FIRST) + 1
    ledger = Ledger(store, work, PLAN)
    assert ledger.open_parts(retry_failed=False) == []
    assert (ledger.num_rows_open, ledger.tally.num_failed) == (0, num_failed)
    ledger = Ledger(store, work, PLAN)
    assert ledger.open_parts(retry_failed=True) == [0]
    assert (ledger.num_rows_open, ledger.tally.num_rows) == (num_failed, 0)


def test_ledger_has_no_summary_and_the_leftovers_while_parts_are_open(tmp_path: Path) -> None:
    work, store = begun(write_prompts(tmp_path), tmp_path / "out", "files")
    leftovers = ("table/part-00000.0123abcd.parquet", "images/part-00000/r1.png")
    for path in leftovers:
        store.write_bytes(path, b"of a run that was killed")
    ledger = Ledger(store, work, PLAN)
    ledger.finish({"num_rows": 6})
    assert [store.exists(path) for path in leftovers] == [False, True]
    assert ledger.open_parts(retry_failed=True) == [0]
    ledger.reopen()
    assert read_summary(store) is None
    ledger.finish({"num_rows": 7})
    assert [store.exists(path) for path in leftovers] == [False, False]
    assert read_summary(store) == {"num_rows": 7}
