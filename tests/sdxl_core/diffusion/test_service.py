"""Engines behind a thread: everyone gets an answer, and it is their own."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch

from sdxl_core.contract.errors import ConfigError
from sdxl_core.diffusion.engine import Engine, OutOfMemoryRow
from sdxl_core.diffusion.service import EngineService, fullest
from sdxl_core.diffusion.tasks import DenoiseResult
from tests.sdxl_core.diffusion.micro_tasks import micro_network, micro_task

TIMEOUT_S = 60  # of every wait: a hang is a failure, not a stuck suite


def service(network=None, *, num_slots: int = 4) -> EngineService:
    network = network or micro_network()
    return EngineService(
        {name: Engine(network, slots_for=num_slots) for name in ("base", "refiner")}
    )


def breaks_on_call(number: int):
    """A real network whose call ``number`` fails, and a gate that lets calls through."""
    gate, calls = threading.Event(), 0

    def network(*inputs):
        nonlocal calls
        gate.wait(TIMEOUT_S)
        calls += 1
        if calls >= number:
            raise RuntimeError("the device fell off the bus")
        return micro_network()(*inputs)

    return network, gate


def test_concurrent_callers_get_their_own_results_with_the_bits_of_the_row_alone():
    # Every caller uses the same keys, as every part of a table may.
    def one_caller(serving: EngineService, caller: int) -> list[torch.Tensor]:
        tasks = [micro_task(10 * caller + number, num_steps=1 + number % 3) for number in range(4)]
        futures = [serving.submit("base", task) for task in tasks]
        outcomes = [future.result(TIMEOUT_S) for future in futures]
        assert all(isinstance(outcome, DenoiseResult) for outcome in outcomes)
        return [outcome.latents_CHW for outcome in outcomes]

    with service() as serving, ThreadPoolExecutor(5) as callers:
        found = list(callers.map(lambda caller: one_caller(serving, caller), range(5)))

    for caller, latents in enumerate(found):
        for number, latents_CHW in enumerate(latents):
            task = micro_task(10 * caller + number, num_steps=1 + number % 3)
            alone = Engine(micro_network(), slots_for=4).run([task])[task.key]
            assert torch.equal(latents_CHW, alone.latents_CHW)


def test_rows_of_all_callers_fill_the_same_slots():
    network, gate = breaks_on_call(10_000)
    with service(network) as serving:
        futures = [serving.submit("base", micro_task(key, num_steps=2)) for key in range(8)]
        gate.set()
        wait(futures, TIMEOUT_S)
        stats = serving.engines["base"].stats

    # The first call may have begun before the others came; it holds one row at least.
    assert stats.num_row_steps == 16
    assert stats.num_ticks <= 6


def test_the_engine_with_the_fuller_call_goes_first_and_the_later_one_of_equals():
    engines = {name: Engine(micro_network(), slots_for=4) for name in ("base", "refiner")}
    assert fullest(engines) is None

    engines["base"].submit(micro_task(0))
    assert fullest(engines) == "base"
    engines["refiner"].submit(micro_task(1))
    assert fullest(engines) == "refiner"
    engines["base"].submit(micro_task(2))
    assert fullest(engines) == "base"


def test_a_failed_call_reaches_everyone_who_waits_instead_of_a_hang():
    network, gate = breaks_on_call(2)
    serving = service(network, num_slots=2)
    futures = [serving.submit("base", micro_task(key)) for key in range(6)]
    futures.append(serving.submit("refiner", micro_task(7)))
    assert not serving.failed

    gate.set()

    for future in futures:
        with pytest.raises(RuntimeError, match="fell off the bus"):
            future.result(TIMEOUT_S)
    with pytest.raises(RuntimeError, match="fell off the bus"):
        # Whether it is refused at once or through its future, it is told why.
        serving.submit("base", micro_task(8)).result(TIMEOUT_S)
    assert serving.failed
    serving.close()


def test_a_new_service_works_after_a_failed_one():
    network, gate = breaks_on_call(1)
    gate.set()
    broken = service(network)
    with pytest.raises(RuntimeError, match="bus"):
        broken.submit("base", micro_task(0)).result(TIMEOUT_S)
    broken.close()

    with service() as fresh:
        assert isinstance(fresh.submit("base", micro_task(0)).result(TIMEOUT_S), DenoiseResult)


def test_closing_finishes_what_was_submitted_and_is_no_failure():
    with service(num_slots=2) as serving:
        futures = [serving.submit("base", micro_task(key)) for key in range(5)]

    assert all(future.done() and future.exception() is None for future in futures)
    assert not serving.failed
    with pytest.raises(RuntimeError, match="closed"):
        serving.submit("base", micro_task(9))


def test_a_task_that_the_engine_refuses_fails_alone():
    with EngineService({"base": Engine(micro_network(), slots_for={})}) as serving:
        refused = serving.submit("base", micro_task(0))
        with pytest.raises(ConfigError, match="64x64"):
            refused.result(TIMEOUT_S)
        assert not serving.failed


def test_a_row_too_large_for_memory_is_an_outcome_not_a_failure():
    def network(x_NCHW, *rest):
        if x_NCHW.shape[-1] == 16:
            raise torch.OutOfMemoryError("too large")
        return micro_network()(x_NCHW, *rest)

    with service(network, num_slots=1) as serving:
        large = serving.submit("base", micro_task(0, latent_size=(16, 16)))
        small = serving.submit("base", micro_task(1))

        assert isinstance(large.result(TIMEOUT_S), OutOfMemoryRow)
        assert isinstance(small.result(TIMEOUT_S), DenoiseResult)


def test_a_task_cancelled_while_it_waits_does_no_harm():
    network, gate = breaks_on_call(10_000)
    with service(network, num_slots=1) as serving:
        first = serving.submit("base", micro_task(0))
        cancelled = [serving.submit("base", micro_task(key)) for key in range(1, 4)]
        for future in cancelled:
            future.cancel()
        gate.set()

        assert isinstance(first.result(TIMEOUT_S), DenoiseResult)
        last = serving.submit("base", micro_task(9))
        assert isinstance(last.result(TIMEOUT_S), DenoiseResult)
