"""A device that has too little memory for some steps gets smaller ones, and every answer is what it would have been."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fake_device import run_alone
from penstock.scheduler.messages import SamplingParams
from penstock.scheduler.plan import StepPlan
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler, SchedulerConfig
from penstock.scheduler.step_bounds import GROW_AFTER, MIN_PREFILL, StepBounds
from simulation import Simulation, make_config, make_request


def requests(count: int, prompt: int = 40) -> list[Request]:
    return [make_request(i, range(i, i + prompt), max_tokens=12, arrival=float(i)) for i in range(count)]


def serve(fits: Callable[[StepPlan], bool], config: SchedulerConfig, given: list[Request]) -> Simulation:
    """Two steps in flight on a device that refuses the plans that do not fit."""
    simulation = Simulation(config)
    simulation.add(*given)
    refused = 0
    while simulation.scheduler.has_work():
        plan = simulation.plan()
        if plan is not None and not fits(plan):
            refused += 1
            assert refused < 50, "steps do not become small enough"
            # The oldest in flight fails with it: both are void.
            simulation.in_flight.clear()
            assert simulation.scheduler.fail(plan, out_of_memory=True) == []
            simulation.scheduler.check()
        elif len(simulation.in_flight) == 2 or (plan is None and simulation.in_flight):
            simulation.commit()
    simulation.refused = refused  # type: ignore[attr-defined]
    return simulation


@pytest.mark.parametrize(
    "fits",
    [
        lambda plan: plan.num_tokens - plan.num_decode_rows <= 20,
        lambda plan: len(plan.slots) <= 3,
        lambda plan: plan.num_tokens <= MIN_PREFILL + 1,
        lambda plan: len(plan.slots) <= 1,
    ],
    ids=["prefill", "rows", "both", "one row"],
)
def test_every_request_gets_its_tokens_from_steps_that_fit(fits: Callable[[StepPlan], bool]) -> None:
    config = make_config()
    given = requests(7)
    prompts = [request.tokens.tolist() for request in given]
    simulation = serve(fits, config, given)
    assert simulation.refused > 0  # type: ignore[attr-defined]
    for request, prompt in zip(given, prompts, strict=True):
        expected, reason = run_alone(
            prompt, len(prompt), request.sampling, config.max_model_len, config.groups
        )
        assert (simulation.outputs[request.request_id], request.finish_reason) == (expected, reason)
        assert request.num_failures == 0


def test_a_request_for_which_there_is_never_memory_ends_and_the_others_go_on() -> None:
    scheduler = Scheduler(make_config())
    large = make_request(0, range(40))
    scheduler.add(large)
    failed: list[Request] = []
    steps = 0
    while not failed:
        plan = scheduler.plan(0.0)
        assert plan is not None
        failed = scheduler.fail(plan, out_of_memory=True)
        steps += 1
        assert steps < 20
    assert failed == [large]
    assert large.finish_reason == "error"
    scheduler.add(make_request(1, range(5)))
    assert scheduler.plan(0.0) is not None


def test_bounds_return_to_what_was_configured_after_steps_that_went_well() -> None:
    bounds = StepBounds(max_num_batched_tokens=64, max_num_seqs=8)
    decodes = StepPlan(
        step=0,
        slots=np.arange(8, dtype=np.int32),
        starts=np.zeros(8, np.int32),
        lens=np.ones(8, np.int32),
        sample=np.ones(8, np.bool_),
        num_decode_rows=8,
        num_tokens=8,
    )
    assert bounds.shrink(decodes)
    assert (bounds.prefill_tokens, bounds.num_seqs) == (64, 4)
    for _ in range(GROW_AFTER - 1):
        bounds.committed()
    assert bounds.num_seqs == 4
    bounds.committed()
    assert bounds.num_seqs == 8


def encoder_prompt(key: int, length: int) -> Request:
    return Request(
        key=key,
        tokens=np.arange(length, dtype=np.int32),
        num_prompt_tokens=length,
        sampling=SamplingParams(max_tokens=0),
        arrival=float(key),
    )


def test_prompts_that_cannot_be_cut_are_taken_fewer_at_a_time_down_to_one() -> None:
    scheduler = Scheduler(make_config(groups=(), max_num_batched_tokens=128, enable_prefix_caching=False))
    for key in range(4):
        scheduler.add(encoder_prompt(key, 30))
    rows = []
    for _ in range(3):
        plan = scheduler.plan(0.0)
        assert plan is not None
        rows.append(len(plan.slots))
        scheduler.fail(plan, out_of_memory=True)
        scheduler.check()
    assert rows == [4, 2, 1]
    # Longer than the bound is now: it is read all the same, alone.
    scheduler.add(encoder_prompt(9, 100))
    lens = []
    for _ in range(8):
        plan = scheduler.plan(0.0)
        if plan is None:
            break
        lens.append(plan.lens.tolist())
    assert [100] in lens
