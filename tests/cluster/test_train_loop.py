"""Training by a group of processes on the CPU, without Ray: ZeRO, checkpoints, resume."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sdxl_core.storage.stores import open_store
from sdxl_core.training.checkpoint_store import committed_steps, fetch_states, read_record
from sdxl_core.training.pieces import PieceReader, read_parameters
from sdxl_core.training.sample_draws import normals
from tests.cluster.train_group import (
    GLOBAL_BATCH_SIZE,
    WIDTH,
    ToyRun,
    run_group,
    same_bits,
    state_of,
    toy_network,
)

STAGES = (1, 2, 3)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def write_results(folder: Path, name: str, **results: object) -> None:
    if dist.get_rank() == 0:
        (folder / f"{name}.json").write_text(json.dumps(results))


def read_results(folder: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / f"{name}.json").read_text())
    return found


def whole(store_path: Path, step: int, kind: str) -> torch.Tensor:
    """All parameters of a checkpoint, one after the other."""
    store = open_store(store_path)
    record = read_record(store, step)
    reader = PieceReader(fetch_states(store, record, store_path / "read"))
    found = read_parameters(reader, record.shapes, kind=kind)
    return torch.cat([found[name].flatten() for name in sorted(found)])


def resume_at_every_stage(folder: Path, stages: tuple[int, ...] = STAGES) -> None:
    for stage in stages:
        straight = ToyRun(folder / f"straight-{stage}", stage)
        engine, outcome = straight.train(6)
        expected = state_of(engine)
        broken = ToyRun(folder / f"broken-{stage}", stage)
        _, first = broken.train(6, stop_at=2)
        _, second = broken.train(6, stop_at=4)
        again, last = broken.train(6)
        write_results(
            folder,
            f"resume-{stage}",
            finished=[outcome.is_finished, first.is_finished, second.is_finished, last.is_finished],
            stops=[first.progress.step, second.progress.step, last.progress.step],
            same=same_bits(expected, state_of(again)),
            losses=[straight.losses == broken.losses, sorted(broken.losses)],
            norms=straight.norms == broken.norms,
        )


def test_resumed_twice_at_the_same_world_size_gives_the_same_bits(tmp_path: Path) -> None:
    run_group(resume_at_every_stage, world_size=2, folder=tmp_path, arguments=(STAGES,))
    for stage in STAGES:
        found = read_results(tmp_path, f"resume-{stage}")
        assert found["stops"] == [2, 4, 6]
        assert found["finished"] == [True, False, False, True]
        assert found["same"] is True, stage
        assert found["losses"] == [True, [1, 2, 3, 4, 5, 6]]
        assert found["norms"] is True
        # Two checkpoints are kept of those after 2, 3 (not taken again), 4 and 6 steps.
        assert committed_steps(open_store(tmp_path / f"broken-{stage}")) == [4, 6]


def train_on(folder: Path, stage: int, num_steps: int) -> None:
    ToyRun(folder / "elastic", stage, precision="float32").train(num_steps)


def train_straight(folder: Path) -> None:
    ToyRun(folder / "straight", 2, precision="float32").train(8)


def plain_training(num_steps: int) -> torch.Tensor:
    """What torch's own AdamW makes of the same samples, all in one process."""
    network = toy_network()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    for step in range(num_steps):
        seeds = [1000 * step + row for row in range(GLOBAL_BATCH_SIZE)]
        input_BW = normals(seeds, (WIDTH,), "noise")
        loss = (network(input_BW) - input_BW.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.step()
    weights = dict(network.named_parameters())
    return torch.cat([weights[name].detach().flatten() for name in sorted(weights)])


def test_other_world_sizes_and_stages_go_on_from_the_same_checkpoint(tmp_path: Path) -> None:
    """4 -> 2 -> 1 -> 2 workers, at stages 3, 1, 2 and 3: the run is that of two workers throughout,
    and that is AdamW on the mean of the global batch."""
    run_group(train_straight, world_size=2, folder=tmp_path)
    for num_steps, world_size, stage in ((2, 4, 3), (4, 2, 1), (6, 1, 2), (8, 2, 3)):
        run_group(train_on, world_size=world_size, folder=tmp_path, arguments=(stage, num_steps))
    torch.testing.assert_close(
        whole(tmp_path / "straight", 8, "master"), plain_training(8), rtol=1e-4, atol=1e-6
    )
    for kind in ("master", "average", "exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(
            whole(tmp_path / "elastic", 8, kind),
            whole(tmp_path / "straight", 8, kind),
            rtol=1e-4,
            atol=1e-7,
        )


def skip_steps(folder: Path) -> None:
    for stage in STAGES:
        run = ToyRun(folder / f"poisoned-{stage}", stage, poisoned=(1, 2))
        engine, outcome = run.train(4)
        finite = all(tensor.isfinite().all() for tensor in state_of(engine).values())
        write_results(
            folder,
            f"skip-{stage}",
            skipped=outcome.progress.num_skipped,
            in_row=outcome.progress.num_skipped_in_row,
            updates=outcome.progress.num_updates,
            finite=bool(finite),
        )


def test_steps_whose_gradient_is_not_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    run_group(skip_steps, world_size=2, folder=tmp_path)
    for stage in STAGES:
        assert read_results(tmp_path, f"skip-{stage}") == {
            "skipped": 2,
            "in_row": 0,
            "updates": 2,
            "finite": True,
        }


def save_when_asked(folder: Path) -> None:
    run = ToyRun(folder / "run", stage=2, checkpoint_every=4)
    run.train(9, save_at=2)
    assert run.reported_before_checkpoints == [2, 4, 8, 9]
    if dist.get_rank() == 0:
        assert committed_steps(open_store(run.store_path)) == [8, 9], "two are kept"


def test_reports_are_safe_before_every_checkpoint_those_asked_for_included(tmp_path: Path) -> None:
    run_group(save_when_asked, world_size=2, folder=tmp_path)
