"""A model that keeps no keys and values reads whole prompts: no step cuts one, none is overtaken, nothing is held."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.scheduler.messages import PoolingParams, SamplingParams
from penstock.scheduler.plan import StepResult
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import RequestTooLong, Scheduler
from simulation import make_config


def encoder_scheduler(**changes: object) -> Scheduler:
    config = {"groups": (), "enable_prefix_caching": False, "max_num_batched_tokens": 128}
    return Scheduler(make_config(**{**config, **changes}))


def prompt(key: int, length: int, **fields: object) -> Request:
    return Request(
        key=key,
        tokens=np.arange(length, dtype=np.int32),
        num_prompt_tokens=length,
        sampling=SamplingParams(max_tokens=0),
        pooling=PoolingParams(task="embed"),
        arrival=float(key),
        **fields,  # type: ignore[arg-type]
    )


def nothing(rows: int) -> StepResult:
    return StepResult(counts=np.zeros(rows, np.int32), tokens=np.zeros(0, np.int32))


@given(
    lengths=st.lists(st.integers(1, 128), min_size=1, max_size=40),
    lag=st.integers(0, 1),
    max_num_seqs=st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_every_prompt_is_read_once_whole_and_in_order(
    lengths: list[int], lag: int, max_num_seqs: int
) -> None:
    scheduler = encoder_scheduler(max_num_seqs=max_num_seqs)
    for key, length in enumerate(lengths):
        scheduler.add(prompt(key, length))
    read: list[int] = []
    in_flight = []
    while scheduler.has_work():
        plan = scheduler.plan(0.0)
        if plan is not None:
            assert plan.num_tokens <= 128
            assert not plan.sample.any()
            assert not plan.starts.any()
            assert [init.slot for init in plan.inits] == plan.slots.tolist()
            assert [len(init.request.tokens) for init in plan.inits] == plan.lens.tolist()
            read += [init.request.key for init in plan.inits]
            in_flight.append(plan)
        if len(in_flight) > lag or plan is None:
            oldest = in_flight.pop(0)
            outcome = scheduler.commit(oldest, nothing(len(oldest.slots)), 1.0)
            assert [request.key for request in outcome.finished] == [
                init.request.key for init in oldest.inits
            ]
        scheduler.check()
    assert read == list(range(len(lengths)))
    assert scheduler.load().num_running == 0


def test_a_prompt_that_does_not_fit_waits_for_the_next_step_and_is_not_overtaken() -> None:
    scheduler = encoder_scheduler()
    for key, length in enumerate([100, 40, 5]):
        scheduler.add(prompt(key, length))
    plan = scheduler.plan(0.0)
    assert plan is not None
    assert plan.lens.tolist() == [100]
    plan = scheduler.plan(0.0)
    assert plan is not None
    assert plan.lens.tolist() == [40, 5]


def test_a_prompt_may_fill_the_whole_context_and_no_more() -> None:
    scheduler = encoder_scheduler()
    scheduler.add(prompt(0, 128))
    with pytest.raises(RequestTooLong, match="129 tokens"):
        scheduler.add(prompt(1, 129))


def test_a_failed_step_is_read_again() -> None:
    scheduler = encoder_scheduler()
    scheduler.add(prompt(0, 7))
    plan = scheduler.plan(0.0)
    assert plan is not None
    assert scheduler.fail(plan) == []
    scheduler.check()
    again = scheduler.plan(0.0)
    assert again is not None
    assert again.lens.tolist() == [7]
    assert len(scheduler.commit(again, nothing(1), 1.0).finished) == 1
