"""The engine's promise: a row's result is its own, whatever else is in the batch."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.contract.errors import ConfigError
from sdxl_core.diffusion.engine import Engine, OutOfMemoryRow, SlotShrink, registered_slots
from sdxl_core.diffusion.samplers import SAMPLER_NAMES, run_table
from sdxl_core.diffusion.tasks import DenoiseResult, DenoiseTask, LaneKey
from tests.sdxl_core.diffusion.micro_tasks import micro_network, micro_task

# Tolerances: a call with another batch shape may use other kernels, so float32 results differ in
# the last digits, amplified by guidance over the steps.
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(tasks: list[DenoiseTask], *, num_slots: int, numerics: str = "exact"):
    engine = Engine(micro_network(), slots_for=num_slots, numerics=numerics)  # type: ignore[arg-type]
    return engine.run(tasks)


def reference(task: DenoiseTask) -> torch.Tensor:
    """The row by the plain definition of its table, one network call per side."""
    generator = torch.Generator().manual_seed(task.seed)

    def draw() -> torch.Tensor:
        return torch.randn((1, 4, task.latent_height, task.latent_width), generator=generator)

    def network(x_BCHW: torch.Tensor, timestep: float) -> torch.Tensor:
        def side(told) -> torch.Tensor:
            with torch.inference_mode():
                return micro_network()(
                    x_BCHW.float(),
                    torch.tensor([timestep]),
                    told.context_TD[None],
                    told.pooled_P[None],
                    told.time_ids_I[None],
                )

        positive = side(task.positive)
        if task.negative is None:
            return positive
        negative = side(task.negative)
        return negative + task.guidance_scale * (positive - negative)

    start = draw() * task.table.initial_noise_scale
    return run_table(task.table, network, start, draw)[0]


row_strategy = st.builds(
    dict,
    sampler=st.sampled_from(SAMPLER_NAMES),
    num_steps=st.integers(1, 4),
    guidance_scale=st.sampled_from([1.0, 3.0, 7.5]),
    guidance_rescale=st.sampled_from([0.0, 0.7]),
    latent_size=st.sampled_from([(8, 8), (8, 16), (12, 8)]),
)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(row_strategy, min_size=2, max_size=6),
    num_slots=st.sampled_from([2, 4]),
    data=st.data(),
)
def test_engine_gives_each_row_the_bits_of_the_row_run_alone_under_exact(rows, num_slots, data):
    tasks = [micro_task(key, **row) for key, row in enumerate(rows)]
    arrival = data.draw(st.permutations(tasks))

    together = run(arrival, num_slots=num_slots)

    for task in tasks:
        alone = run([task], num_slots=num_slots)[task.key]
        assert torch.equal(together[task.key].latents_CHW, alone.latents_CHW)


@settings(max_examples=8, deadline=None)
@given(rows=st.lists(row_strategy, min_size=3, max_size=6), num_ticks=st.integers(1, 6))
def test_rows_that_join_late_do_not_change_those_already_running(rows, num_ticks):
    tasks = [micro_task(key, **row) for key, row in enumerate(rows)]
    engine = Engine(micro_network(), slots_for=4)
    results: dict[str, DenoiseResult | OutOfMemoryRow] = {}

    engine.submit(tasks[0])
    for _ in range(num_ticks):
        results.update((r.key, r) for r in engine.tick())
    results.update(engine.run(tasks[1:]))

    for task in tasks:
        alone = run([task], num_slots=4)[task.key]
        assert torch.equal(results[task.key].latents_CHW, alone.latents_CHW)


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_engine_agrees_with_the_plain_loop_over_the_table(sampler, guidance_scale):
    tasks = [
        micro_task(key, sampler=sampler, num_steps=2 + key, guidance_scale=guidance_scale)
        for key in range(3)
    ]

    results = run(tasks, num_slots=4)

    for task in tasks:
        expected = reference(task)
        error = (results[task.key].latents_CHW - expected).norm() / expected.norm()
        assert error < 1e-4


@pytest.mark.parametrize("num_slots", [1, 2, 8])
def test_another_slot_number_changes_results_only_in_the_last_digits(num_slots):
    tasks = [micro_task(key, num_steps=3) for key in range(5)]

    some, others = run(tasks, num_slots=4), run(tasks, num_slots=num_slots)

    for task in tasks:
        torch.testing.assert_close(
            some[task.key].latents_CHW, others[task.key].latents_CHW, **CLOSE
        )


def test_fast_numerics_computes_fewer_places_and_stays_close():
    tasks = [micro_task(key, num_steps=2 + key) for key in range(3)]
    exact = Engine(micro_network(), slots_for=8)
    fast = Engine(micro_network(), slots_for=8, numerics="fast")

    exact_results, fast_results = exact.run(tasks), fast.run(tasks)

    assert fast.stats.num_places < exact.stats.num_places
    for task in tasks:
        torch.testing.assert_close(
            fast_results[task.key].latents_CHW, exact_results[task.key].latents_CHW, **CLOSE
        )


def test_unguided_rows_pay_for_one_half_only():
    batch_sizes: list[int] = []

    def counting(x_NCHW, *rest):
        batch_sizes.append(x_NCHW.shape[0])
        return micro_network()(x_NCHW, *rest)

    Engine(counting, slots_for=2).run([micro_task(0, guidance_scale=1.0)])
    Engine(counting, slots_for=2).run([micro_task(0, guidance_scale=5.0)])

    assert set(batch_sizes[:3]) == {2}
    assert set(batch_sizes[3:]) == {4}


def test_guidance_of_one_equals_the_unguided_model():
    # Just above 1 the row is guided; the two sides then cancel to the positive one.
    unguided = run([micro_task(3, guidance_scale=1.0)], num_slots=2)["3"]
    guided = run([micro_task(3, guidance_scale=1.0 + 1e-6)], num_slots=2)["3"]

    torch.testing.assert_close(guided.latents_CHW, unguided.latents_CHW, **CLOSE)


def test_rows_join_as_soon_as_a_slot_is_free():
    tasks = [micro_task(key, num_steps=steps) for key, steps in enumerate([2, 6, 4])]
    engine = Engine(micro_network(), slots_for=2)

    engine.run(tasks)

    # Row 2 takes the place of row 0 after two ticks: six ticks in all, none of them idle.
    assert engine.stats.num_ticks == 6
    assert engine.stats.utilisation == 1.0


def limited(max_batch: int):
    def network(x_NCHW, *rest):
        if x_NCHW.shape[0] > max_batch:
            raise torch.OutOfMemoryError(f"a batch of {x_NCHW.shape[0]} does not fit")
        return micro_network()(x_NCHW, *rest)

    return network


def test_out_of_memory_shrinks_the_slots_and_loses_no_row():
    tasks = [micro_task(key, num_steps=2 + key % 3) for key in range(6)]
    engine = Engine(limited(max_batch=4), slots_for=8)

    results = engine.run(tasks)

    expected = run(tasks, num_slots=2)
    assert engine.shrinks == [
        SlotShrink(lane=tasks[0].lane_key, num_slots_before=8, num_slots_after=4),
        SlotShrink(lane=tasks[0].lane_key, num_slots_before=4, num_slots_after=2),
    ]
    for task in tasks:
        assert results[task.key].num_slots == 2
        assert torch.equal(results[task.key].latents_CHW, expected[task.key].latents_CHW)


def test_out_of_memory_in_the_middle_of_a_row_keeps_the_row_where_it_was():
    calls = 0

    def network(x_NCHW, *rest):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("once")
        return micro_network()(x_NCHW, *rest)

    task = micro_task(1, sampler="heun", num_steps=4)

    result = Engine(network, slots_for=2).run([task])["1"]

    expected = run([task], num_slots=2)["1"]
    torch.testing.assert_close(result.latents_CHW, expected.latents_CHW, **CLOSE)


def test_a_row_that_does_not_fit_alone_fails_by_itself():
    small, large = micro_task(0), micro_task(1, latent_size=(16, 16))

    def network(x_NCHW, *rest):
        if x_NCHW.shape[-1] == 16:
            raise torch.OutOfMemoryError("too large")
        return micro_network()(x_NCHW, *rest)

    results = Engine(network, slots_for=2).run([small, large])

    assert isinstance(results["0"], DenoiseResult)
    assert isinstance(results["1"], OutOfMemoryRow)
    assert "128x128" in results["1"].detail


def test_another_error_of_the_network_is_not_swallowed():
    def network(*_):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Engine(network, slots_for=2).run([micro_task(0)])


def test_a_row_that_turns_to_nan_is_reported_and_leaves_its_neighbours_alone():
    bad = micro_task(0)
    told = dataclasses.replace(bad.positive, pooled_P=torch.full((16,), float("nan")))
    bad, good = dataclasses.replace(bad, positive=told), micro_task(1)

    results = run([bad, good], num_slots=2)

    assert not results["0"].is_finite
    assert torch.equal(results["1"].latents_CHW, run([good], num_slots=2)["1"].latents_CHW)


def test_memory_is_bounded_by_slots_and_lanes_are_given_back():
    engine = Engine(micro_network(), slots_for=2)

    engine.run([micro_task(key, num_steps=1) for key in range(20)])

    assert engine.num_pending == 0
    assert engine._lanes == {}


def test_a_shape_without_a_slot_number_is_refused_before_it_is_queued():
    engine = Engine(micro_network(), slots_for={})

    with pytest.raises(ConfigError, match="64x64"):
        engine.submit(micro_task(0))
    assert engine.num_pending == 0


@pytest.mark.parametrize(
    ("num_rows", "max_slots", "expected"), [(1, 8, 1), (3, 8, 4), (100, 8, 8), (9, 20, 16)]
)
def test_registered_slots_is_the_smallest_that_holds_the_rows(num_rows, max_slots, expected):
    assert registered_slots(num_rows, max_slots=max_slots) == expected


def test_lane_key_separates_guided_from_unguided_rows():
    assert micro_task(0, guidance_scale=1.0).lane_key == LaneKey(
        latent_height=8, latent_width=8, guided=False
    )
