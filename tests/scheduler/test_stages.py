"""Stages of a pipeline always have steps to work on, each with its share of the requests."""

from __future__ import annotations

import numpy as np
import pytest
from simulation import Simulation, make_config, make_request


def decoding(num_stages: int, num_requests: int) -> Simulation:
    """Requests that all decode, with nothing in flight."""
    simulation = Simulation(make_config(num_stages=num_stages), lag=0)
    for number in range(num_requests):
        simulation.add(make_request(number, range(number, number + 3), max_tokens=20))
    simulation.step()
    simulation.lag = num_stages - 1
    return simulation


@pytest.mark.parametrize(("num_stages", "num_requests"), [(2, 8), (2, 3), (3, 8), (4, 2)])
def test_every_stage_gets_its_share_of_the_decodes(num_stages: int, num_requests: int) -> None:
    simulation = decoding(num_stages, num_requests)
    simulation.plans.clear()
    for _ in range(6):
        simulation.step()
    share = -(-num_requests // num_stages)
    sizes = [len(plan.slots) for plan in simulation.plans]
    assert max(sizes) == share
    busy = min(num_stages, num_requests)
    assert all(sum(sizes[i : i + busy]) <= num_requests for i in range(len(sizes) - busy))
    assert sum(sizes[:busy]) == num_requests


def test_requests_take_turns() -> None:
    simulation = decoding(2, 5)
    simulation.plans.clear()
    for _ in range(20):
        simulation.step()
    counts = np.bincount(np.concatenate([plan.slots for plan in simulation.plans]))
    counts = counts[counts > 0]
    assert counts.max() - counts.min() <= 1


def test_chunks_of_one_prompt_follow_each_other_through_the_stages() -> None:
    simulation = Simulation(make_config(num_stages=3, max_num_batched_tokens=8), lag=2)
    simulation.add(make_request(0, range(30), max_tokens=2))
    plans = [simulation.plan() for _ in range(4)]
    assert [int(plan.starts[0]) for plan in plans if plan] == [0, 8, 16, 24]
    assert simulation.plan() is None  # its first token is still to be drawn
    simulation.lag = 0
    simulation.run()
    assert len(simulation.outputs[0]) == 2


def test_a_failed_step_frees_requests_for_the_next_one() -> None:
    simulation = decoding(2, 4)
    first, second = simulation.plan(), simulation.plan()
    assert first is not None
    assert second is not None
    assert simulation.plan() is None
    simulation.in_flight.clear()
    simulation.scheduler.fail(first)
    simulation.run()
    assert [len(simulation.outputs[number]) for number in range(4)] == [20] * 4
