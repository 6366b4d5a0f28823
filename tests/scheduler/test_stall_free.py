"""Streams do not stall while prompts are computed, neither starves, and throughput stays: on machines of known cost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fake_device import run_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.scheduler.prefill_budget import MAX_SLOWDOWN, MIN_CHUNK
from penstock.scheduler.scheduler import SchedulerConfig
from simulation import Simulation, make_config, make_request

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tools.bench.stall_free import (
    WORKLOADS,
    Figures,
    Job,
    Machine,
    Step,
    scheduler_config,
    simulate,
)

TARGET_MS = 100.0
QUIET = Machine(noise=0.0)


def mixed(steps: list[Step]) -> list[Step]:
    return [step for step in steps if 0 < step.plan.num_decode_rows < len(step.plan.slots)]


def chunk(step: Step) -> int:
    return step.plan.num_tokens - step.plan.num_decode_rows


def under_load(
    config: SchedulerConfig, machine: Machine, speed: Callable[[float], float] = lambda now: 1.0
) -> list[Step]:
    """The mixed steps while 8 streams decode for long and twelve prompts of 2000 tokens wait their turn."""
    jobs = [Job(64, 1200) for _ in range(8)] + [Job(2000, 4, arrival=1.0) for _ in range(12)]
    return mixed(simulate(config, machine, jobs, speed=speed))


@cache
def run(name: str, target_ms: float) -> Figures:
    workload = next(each for each in WORKLOADS if each.__name__ == name)
    return workload(scheduler_config(2048, target_ms), Machine())


def p99_ms(steps: list[Step]) -> float:
    return float(np.percentile([step.seconds for step in steps], 99)) * 1e3


def test_steps_stay_within_the_target_once_a_few_were_measured() -> None:
    steps = under_load(scheduler_config(2048, TARGET_MS), QUIET)
    assert p99_ms(steps[20:]) < 1.05 * TARGET_MS
    assert np.mean([step.seconds for step in steps[20:]]) > 0.9e-3 * TARGET_MS, "and use what it allows"


def test_noise_of_the_machine_adds_no_more_than_itself() -> None:
    steps = under_load(scheduler_config(2048, TARGET_MS), Machine(noise=0.1))
    assert np.median([step.seconds for step in steps[20:]]) == pytest.approx(TARGET_MS / 1e3, rel=0.1)
    assert p99_ms(steps[20:]) < 1.4 * TARGET_MS


def test_the_few_steps_that_it_takes_to_learn_stay_near_the_target() -> None:
    steps = under_load(scheduler_config(2048, TARGET_MS), QUIET)
    assert max(step.seconds for step in steps[:20]) < 1.5e-3 * TARGET_MS


@pytest.mark.parametrize("name", [each.__name__ for each in WORKLOADS])
def test_throughput_loses_less_than_a_tenth(name: str) -> None:
    assert run(name, TARGET_MS).tokens_s > 0.9 * run(name, 0.0).tokens_s


def test_long_prompts_stall_streams_by_the_target_and_not_by_their_length() -> None:
    longest = Machine().token_ms * 2048
    assert run("long_prompts", TARGET_MS).itl_p99 < 1.15 * TARGET_MS < 0.1 * longest


def test_prompts_with_nothing_decoding_take_the_whole_step() -> None:
    steps = simulate(scheduler_config(2048, 1.0), QUIET, [Job(4000, 1), Job(4000, 1)])
    assert [step.plan.num_tokens for step in steps] == [2048, 2048, 2048, 1856]


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.5), (0.5, 1.0)])
def test_the_chunk_follows_the_speed_of_the_machine(before: float, after: float) -> None:
    def speed(now: float) -> float:
        return before if now < 6.0 else after

    machine = Machine(noise=0.05, weights_ms=10.0, key_ms=0.0)
    steps = under_load(scheduler_config(2048, TARGET_MS), machine, speed)
    changed = [step for step in steps if step.end > 6.5]
    assert np.median([step.seconds for step in changed[20:]]) == pytest.approx(TARGET_MS / 1e3, rel=0.1)
    steady = under_load(scheduler_config(2048, TARGET_MS), machine, lambda now: after)
    assert np.mean([chunk(step) for step in changed[20:120]]) == pytest.approx(
        np.mean([chunk(step) for step in steady[20:120]]), rel=0.15
    )


def test_steps_that_the_machine_was_taken_away_from_do_not_collapse_the_chunk() -> None:
    quiet = under_load(scheduler_config(2048, TARGET_MS), Machine())
    disturbed = under_load(scheduler_config(2048, TARGET_MS), Machine(outlier_every=15, outlier=10.0))
    assert np.mean([chunk(step) for step in disturbed]) > 0.8 * np.mean([chunk(step) for step in quiet])


def test_a_target_that_decodes_alone_miss_starves_neither_side() -> None:
    steps = under_load(scheduler_config(2048, 1.0), QUIET)
    plans = [step.plan for step in steps[20:]]
    ended = [plan.sample[plan.num_decode_rows :].any() for plan in plans]
    assert all(done or chunk(step) >= MIN_CHUNK for step, done in zip(steps[20:], ended, strict=True))
    undisturbed = QUIET.weights_ms + QUIET.key_ms * np.array(
        [plan.starts[: plan.num_decode_rows].sum() for plan in plans]
    )
    slowdown = np.array([step.seconds for step in steps[20:]]) * 1e3 / undisturbed
    assert np.percentile(slowdown, 99) < 1.1 * MAX_SLOWDOWN
    assert np.median(slowdown) > 1.5, "prompts get about half of the time"


def test_chunks_become_shorter_as_the_context_grows() -> None:
    machine = Machine(noise=0.0, pair_ms=5e-4)
    jobs = [Job(16, 1500), Job(7000, 2, arrival=0.5)]
    steps = mixed(simulate(scheduler_config(2048, TARGET_MS), machine, jobs))[20:]
    assert p99_ms(steps) < 1.1 * TARGET_MS
    assert chunk(steps[-2]) < 0.5 * chunk(steps[5])


@settings(derandomize=True, database=None, deadline=None, max_examples=15)
@given(
    scale=st.floats(0.01, 100.0),
    weights=st.floats(0.0, 60.0),
    fixed=st.floats(0.5, 30.0),
    token=st.floats(0.02, 4.0),
    tokens_a_pair=st.floats(0.0, 1e-3),
    target=st.floats(20.0, 300.0),
)
def test_whatever_the_machine_costs_its_steps_stay_within_what_is_allowed(
    scale: float, weights: float, fixed: float, token: float, tokens_a_pair: float, target: float
) -> None:
    machine = Machine(
        noise=0.02,
        weights_ms=scale * weights,
        fixed_ms=scale * fixed,
        decode_ms=scale * token,
        token_ms=scale * token,
        pair_ms=scale * token * tokens_a_pair,
        key_ms=scale * 1e-3,
    )
    steps = under_load(scheduler_config(2048, scale * target), machine)[30:]
    allowed = []
    for step in steps:
        keys = float(step.plan.starts[: step.plan.num_decode_rows].sum())
        rows = step.plan.num_decode_rows
        alone = max(machine.weights_ms, machine.fixed_ms + machine.decode_ms * rows) + machine.key_ms * keys
        smallest = machine.fixed_ms + machine.token_ms * (rows + MIN_CHUNK) + machine.pair_ms * 16 * 2000
        allowed.append(max(scale * target, MAX_SLOWDOWN * alone, smallest + machine.key_ms * keys) / 1e3)
    over = [step.seconds / limit for step, limit in zip(steps, allowed, strict=True)]
    assert not over or np.percentile(over, 95) < 1.2


def test_without_measurements_chunks_are_the_smallest_and_prompts_still_get_on() -> None:
    simulation = Simulation(make_config(target_itl_ms=5.0, max_model_len=512))
    simulation.add(make_request(0, range(6), max_tokens=100))
    simulation.step()
    prompt = make_request(1, range(100, 300))
    simulation.add(prompt)
    for _ in range(40):
        simulation.step()
    assert prompt.finish_reason is not None
    chunks = [plan.lens[-1] for plan in simulation.plans if 0 < plan.num_decode_rows < len(plan.slots)]
    assert chunks == [MIN_CHUNK] * 12 + [200 - 12 * MIN_CHUNK]


def test_prompts_of_a_model_without_kv_groups_are_not_cut() -> None:
    config = make_config(
        groups=(), enable_prefix_caching=False, max_num_batched_tokens=128, target_itl_ms=0.001
    )
    simulation = Simulation(config)
    simulation.add(*(make_request(number, range(100), max_tokens=0) for number in range(3)))
    simulation.run()
    assert [plan.lens.tolist() for plan in simulation.plans] == [[100], [100], [100]]


@pytest.mark.parametrize("lag", [0, 1])
def test_greedy_output_is_the_same_with_a_target(lag: int) -> None:
    outputs = []
    for target_ms in (0.0, 20.0):
        config = make_config(max_model_len=256, target_itl_ms=target_ms, max_num_batched_tokens=128)
        simulation = Simulation(config, lag, seconds=lambda plan: 1e-3 * (4 + plan.num_tokens))
        for number in range(10):
            tokens = [number, *range(40 + 15 * number)]
            simulation.add(make_request(number, tokens, max_tokens=30))
            simulation.step()
        simulation.run()
        outputs.append(dict(simulation.outputs))
        if target_ms:
            sizes = [
                plan.num_tokens for plan in simulation.plans if 0 < plan.num_decode_rows < len(plan.slots)
            ]
            assert max(sizes[10:]) < 40, "prompts were cut"
    assert outputs[0] == outputs[1]
    request = make_request(3, [3, *range(85)], max_tokens=30)
    expected = run_alone([3, *range(85)], 86, request.sampling, 256, config.groups)[0]
    assert outputs[1][3] == expected


def test_the_load_tells_of_mixed_steps_and_of_how_well_they_were_predicted() -> None:
    config = make_config(max_model_len=512, target_itl_ms=30.0, max_num_batched_tokens=128)
    simulation = Simulation(config, seconds=lambda plan: 1e-3 * (4 + plan.num_tokens))
    simulation.add(make_request(0, range(6), max_tokens=60))
    simulation.step()
    simulation.add(make_request(1, range(100, 400), max_tokens=2))
    simulation.run()
    load = simulation.scheduler.load()
    both = [plan for plan in simulation.plans if 0 < plan.num_decode_rows < len(plan.slots)]
    assert load.mixed_steps == len(both) > 5
    assert load.mixed_prefill_tokens == sum(plan.num_tokens - plan.num_decode_rows for plan in both)
    assert load.mixed_step_seconds == pytest.approx(sum(1e-3 * (4 + plan.num_tokens) for plan in both))
    assert load.mixed_steps_late == sum(4 + plan.num_tokens > 30 for plan in both)
    assert load.mixed_expected_seconds == pytest.approx(load.mixed_step_seconds, rel=0.2)
