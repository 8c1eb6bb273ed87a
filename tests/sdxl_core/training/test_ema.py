"""The running mean of weights."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from sdxl_core.contract.errors import ConfigError
from sdxl_core.training.ema import FlatAverage, WeightAverage


def _filled(value: float) -> nn.Linear:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def test_update_of_constant_weights_changes_nothing() -> None:
    average = WeightAverage(_filled(2.0))
    for _ in range(5):
        average.update(_filled(2.0))
    assert torch.equal(average.shadow["weight"], torch.full((2, 3), 2.0))


def test_update_follows_the_written_recursion() -> None:
    average = WeightAverage(_filled(0.0), decay=0.5)
    expected = 0.0
    for i in range(30):
        decay = min(0.5, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * float(i)
        average.update(_filled(float(i)))
    assert average.shadow["bias"][0].item() == pytest.approx(expected, rel=1e-5)


def test_update_early_average_forgets_its_start() -> None:
    average = WeightAverage(_filled(100.0), decay=0.9999)
    for _ in range(50):
        average.update(_filled(0.0))
    assert average.shadow["weight"].abs().max() < 0.01


def test_load_state_dict_resumes_bit_for_bit() -> None:
    straight = WeightAverage(_filled(0.0))
    stopped = WeightAverage(_filled(0.0))
    for i in range(3):
        straight.update(_filled(float(i)))
        stopped.update(_filled(float(i)))
    resumed = WeightAverage(_filled(9.0))
    resumed.load_state_dict(stopped.state_dict())
    straight.update(_filled(7.0))
    resumed.update(_filled(7.0))
    assert torch.equal(straight.shadow["weight"], resumed.shadow["weight"])


def test_copy_to_keeps_the_dtype_of_the_module() -> None:
    module = _filled(0.0).half()
    average = WeightAverage(_filled(1.5))
    average.copy_to(module)
    assert module.weight.dtype == torch.float16
    assert (module.weight == 1.5).all()


def _walk(num_steps: int, *, seed: int = 0) -> list[list[Tensor]]:
    """Two tensors on a random walk, as they are after every step; the first step stands still."""
    generator = torch.Generator().manual_seed(seed)
    moves = [torch.randn(num_steps, size, generator=generator) for size in (7, 3)]
    for move in moves:
        move[1] = 0
    return [[move[: step + 1].sum(0) for move in moves] for step in range(num_steps)]


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_flat_average_agrees_with_the_average_of_diffusers(decay: float) -> None:
    """Theirs takes the first step's weights over whole; here these are the start's."""
    start, *walk = _walk(60)
    theirs = EMAModel([nn.Parameter(flat) for flat in start], decay=decay)
    average = FlatAverage(start, decay=decay)
    for flats in walk:
        theirs.step([nn.Parameter(flat) for flat in flats])
        average.update(flats)
    for found, expected in zip(average.shadows, theirs.shadow_params, strict=True):
        torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("num_workers", [2, 3])
def test_flat_averages_of_shards_are_the_shards_of_the_average(num_workers: int) -> None:
    start, *walk = _walk(12)
    whole = FlatAverage(start)
    workers = [
        FlatAverage([flat.tensor_split(num_workers)[rank] for flat in start])
        for rank in range(num_workers)
    ]
    for flats in walk:
        whole.update(flats)
        for rank, worker in enumerate(workers):
            worker.update([flat.tensor_split(num_workers)[rank] for flat in flats])
    for place, expected in enumerate(whole.shadows):
        found = torch.cat([worker.shadows[place] for worker in workers])
        assert torch.equal(found, expected)


def test_flat_average_every_few_steps_moves_as_far_as_every_step() -> None:
    start, *walk = _walk(8)
    each, seldom = FlatAverage(start), FlatAverage(start, every=4)
    for step, _ in enumerate(walk[:4]):
        each.update(walk[3])
        seldom.update(walk[step])
    torch.testing.assert_close(seldom.shadows, each.shadows)
    seldom.update(walk[6])
    torch.testing.assert_close(seldom.shadows, each.shadows)


def test_flat_average_of_bfloat16_weights_is_float32() -> None:
    flats = [torch.ones(4, dtype=torch.bfloat16)]
    average = FlatAverage(flats, decay=0.999)
    for _ in range(100):
        average.update([torch.full((4,), 1.0078125, dtype=torch.bfloat16)])
    assert average.shadows[0].dtype == torch.float32
    assert flats[0].tolist() == [1.0] * 4
    assert 1.0 < average.shadows[0][0].item() < 1.0078125


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_place_of_lends_the_mean_and_gives_the_weights_back_bit_for_bit(
    dtype: torch.dtype,
) -> None:
    start, *walk = _walk(5)
    average = FlatAverage(start, decay=0.5)
    for flats in walk:
        average.update(flats)
    live = [flat.to(dtype) for flat in walk[-1]]
    before = [flat.clone() for flat in live]
    with average.in_place_of(live):
        assert all(
            torch.equal(flat, shadow.to(dtype))
            for flat, shadow in zip(live, average.shadows, strict=True)
        )
    assert all(torch.equal(flat, own) for flat, own in zip(live, before, strict=True))


def test_flat_average_resumes_bit_for_bit() -> None:
    start, *walk = _walk(9)
    straight, stopped = FlatAverage(start, every=2), FlatAverage(start, every=2)
    for flats in walk[:3]:
        straight.update(flats)
        stopped.update(flats)
    resumed = FlatAverage(walk[0], every=2)
    resumed.load_state_dict(stopped.state_dict())
    for flats in walk[3:]:
        straight.update(flats)
        resumed.update(flats)
    assert all(
        torch.equal(first, second)
        for first, second in zip(straight.shadows, resumed.shadows, strict=True)
    )


def test_flat_average_update_never_makes_the_host_wait_for_the_device() -> None:
    flats = [torch.ones(3, device="meta")]
    average = FlatAverage(flats)
    average.update(flats)
    assert average.shadows[0].is_meta


def test_flat_average_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="ema decay: found 1"):
        FlatAverage([], decay=1.0)
    with pytest.raises(ConfigError, match="ema every: found 0"):
        FlatAverage([], every=0)
