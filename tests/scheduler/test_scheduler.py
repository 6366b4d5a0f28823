"""What the scheduler promises: order, bounds, refusals, preemption, late commits, failures and its gauges."""

from __future__ import annotations

import numpy as np
import pytest
from fake_device import run_alone
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import FinishReason, GrammarSpec
from penstock.scheduler.plan import StepResult
from penstock.scheduler.policies import MAX_OVERTAKES
from penstock.scheduler.requests import Request, State
from penstock.scheduler.scheduler import QueueFull, RequestTooLong, Scheduler, SchedulerConfig
from simulation import Simulation, make_config, make_request


def alone(request: Request, tokens: list[int], config: SchedulerConfig) -> list[int]:
    output, _ = run_alone(
        tokens, request.num_prompt_tokens, request.sampling, config.max_model_len, config.groups
    )
    return output


# ------------------------------------------------------------------------------------------------------- the batch


def test_decodes_come_first_and_prefill_chunks_fill_the_budget() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=16))
    simulation.add(make_request(0, range(6), max_tokens=50))
    simulation.step()
    simulation.add(make_request(1, range(100, 140)), make_request(2, range(200, 204)))
    plan = simulation.plan()
    assert plan is not None
    assert (plan.num_decode_rows, plan.lens.tolist(), plan.num_tokens) == (1, [1, 15], 16)
    assert plan.sample.tolist() == [True, False]
    simulation.commit()
    plan = simulation.plan()
    assert plan is not None
    assert (plan.starts.tolist(), plan.lens.tolist()) == ([7, 15], [1, 15])
    simulation.commit()
    plan = simulation.plan()
    assert plan is not None
    assert plan.starts.tolist() == [8, 30, 0], "the rest of the prompt, then the next request"
    assert plan.lens.tolist() == [1, 10, 4]
    assert plan.sample.all()
    simulation.commit()
    simulation.run()


def test_the_next_step_is_planned_without_knowing_the_token_in_flight() -> None:
    simulation = Simulation(make_config(), lag=1)
    simulation.add(make_request(0, range(6), max_tokens=3))
    plans = [simulation.plan(), simulation.plan(), simulation.plan()]
    assert [plan.starts.tolist() for plan in plans if plan] == [[0], [6], [7]]
    assert simulation.plan() is None, "a fourth token would pass max_tokens"
    assert [simulation.commit().counts.tolist() for _ in plans] == [[1], [1], [1]]
    assert [request.finish_reason for request in simulation.finished] == ["length"]


def test_the_row_of_a_request_that_stopped_meanwhile_is_dropped() -> None:
    config = make_config()
    request = make_request(0, range(6), max_tokens=20)
    first = alone(request, list(range(6)), config)[0]
    request = make_request(0, range(6), max_tokens=20, stop_token_ids=[first])
    simulation = Simulation(config, lag=1)
    simulation.add(request)
    simulation.plan()
    simulation.plan()
    assert simulation.commit().finished == [request]
    assert simulation.commit().counts.size == 0
    assert simulation.outputs[0] == [first]
    assert not simulation.scheduler.has_work()


def test_a_slot_is_reused_only_after_the_steps_that_name_it() -> None:
    config = make_config(max_num_seqs=1)
    simulation = Simulation(config, lag=1)
    one, two = make_request(0, range(6), max_tokens=20), make_request(1, range(50, 56), max_tokens=2)
    simulation.add(one, two)
    plan = simulation.plan()
    assert plan is not None
    simulation.abort(one)
    later = simulation.plan()
    assert later is not None
    assert not set(plan.slots.tolist()) & set(later.slots.tolist())
    simulation.run()
    assert simulation.outputs[1] == alone(two, list(range(50, 56)), config)


def test_a_request_that_wants_no_token_is_computed_and_finished() -> None:
    simulation = Simulation(make_config())
    request = make_request(0, range(30), max_tokens=0, prompt_logprobs=0)
    simulation.add(request)
    simulation.run()
    assert request.finish_reason == "length"
    assert [token for token, _ in simulation.scores[0]] == list(range(1, 30))
    assert simulation.outputs[0] == []


def test_stop_tokens_count_only_after_min_tokens() -> None:
    scheduler = Scheduler(make_config())
    request = make_request(0, range(3), max_tokens=9, min_tokens=2, stop_token_ids=list(range(30)))
    scheduler.add(request)
    for _ in range(3):
        assert request.finish_reason is None
        plan = scheduler.plan(0.0)
        assert plan is not None
        scheduler.commit(plan, StepResult(np.ones(1, np.int32), np.array([29], np.int32)), 0.0)
    assert request.finish_reason == "stop"
    assert request.tokens.tolist() == [0, 1, 2, 29, 29, 29]


def test_a_stop_token_of_a_constrained_request_ends_it_at_once() -> None:
    """Before min_tokens it comes only where the grammar leaves nothing else."""
    scheduler = Scheduler(make_config())
    grammar = GrammarSpec("regex", "a")
    request = make_request(0, range(3), max_tokens=9, min_tokens=5, stop_token_ids=[29], grammar=grammar)
    scheduler.add(request)
    plan = scheduler.plan(0.0)
    assert plan is not None
    scheduler.commit(plan, StepResult(np.ones(1, np.int32), np.array([29], np.int32)), 0.0)
    assert request.finish_reason == "stop"


@pytest.mark.parametrize("reason", ["stop", "error"])
def test_a_row_that_cannot_go_on_ends_its_request_without_the_token(reason: FinishReason) -> None:
    scheduler = Scheduler(make_config())
    ending, other = make_request(0, range(3), max_tokens=9), make_request(1, range(5), max_tokens=9)
    scheduler.add(ending)
    scheduler.add(other)
    tokens = np.array([20, 21], np.int32)
    plans = [scheduler.plan(0.0), scheduler.plan(0.0)]
    results = [
        StepResult(np.ones(2, np.int32), tokens),
        StepResult(np.array([0, 1], np.int32), tokens[1:], ended=[(0, reason)]),
    ]
    ahead = scheduler.plan(0.0)
    outcomes = []
    for plan, result in zip(plans, results, strict=True):
        assert plan is not None
        outcomes.append(scheduler.commit(plan, result, 0.0))
        scheduler.check()
    assert [outcome.finished for outcome in outcomes] == [[], [ending]]
    assert outcomes[1].request_ids.tolist() == [1]
    assert (ending.finish_reason, ending.tokens.tolist()) == (reason, [0, 1, 2, 20])
    assert ahead is not None
    late = scheduler.commit(
        ahead, StepResult(np.array([0, 1], np.int32), tokens[1:], ended=[(0, reason)]), 0.0
    )
    assert late.finished == []
    assert late.request_ids.tolist() == [1]
    scheduler.check()


def test_the_first_token_reports_queue_and_prefill_time_once() -> None:
    simulation = Simulation(make_config(max_num_batched_tokens=8))
    simulation.add(make_request(0, range(20), arrival=0.25))
    simulation.run()
    [(request, queue_s, prefill_s)] = simulation.first
    assert (request.request_id, queue_s, prefill_s) == (0, 0.75, 2.0)


def test_results_that_do_not_match_the_plan_are_refused() -> None:
    scheduler = Scheduler(make_config())
    scheduler.add(make_request(0, range(3)))
    plan = scheduler.plan(0.0)
    assert plan is not None
    with pytest.raises(AssertionError, match="every sampled row brings a token"):
        scheduler.commit(plan, StepResult(np.zeros(1, np.int32), np.zeros(0, np.int32)), 0.0)


# ----------------------------------------------------------------------------------------------- bounds and refusals


def test_a_full_queue_refuses_with_its_numbers() -> None:
    scheduler = Scheduler(make_config(max_num_queued_reqs=2))
    scheduler.add(make_request(0, range(3)))
    scheduler.add(make_request(1, range(3)))
    with pytest.raises(QueueFull, match="2 requests are waiting") as caught:
        scheduler.add(make_request(2, range(3)))
    assert (caught.value.num_waiting, caught.value.max_num_queued_reqs) == (2, 2)
    scheduler.plan(0.0)
    scheduler.add(make_request(2, range(3)))
    scheduler.check()


def test_requests_held_elsewhere_count_and_are_not_refused_later() -> None:
    scheduler = Scheduler(make_config(max_num_queued_reqs=2))
    scheduler.add(make_request(0, range(3)))
    held = make_request(1, range(3))
    scheduler.vet(held)
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        scheduler.vet(make_request(2, range(3)), num_held=1)
    scheduler.add(make_request(2, range(3)))
    scheduler.enqueue(held)
    plan = scheduler.plan(0.0)
    assert plan is not None
    assert len(plan.slots) == 3


def test_preempted_requests_do_not_count_against_the_queue() -> None:
    simulation = Simulation(make_config(max_num_queued_reqs=1, groups=(KVGroup("full", 8),)))
    for index in range(2):
        simulation.add(make_request(index, range(index * 50, index * 50 + 8), max_tokens=20))
        simulation.step()
    while not simulation.scheduler.load().num_preemptions:
        simulation.step()
    assert simulation.scheduler.load().num_waiting == 1
    simulation.add(make_request(2, range(4)))
    with pytest.raises(QueueFull):
        simulation.add(make_request(3, range(4)))
    simulation.run()


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message", "needed", "limit"),
    [
        (33, 1, "the prompt has 33 tokens .* context length is 32", 33, 32),
        (32, 1, "the prompt has 32 tokens .* leave room", 32, 32),
        (10, 22, "31 positions need 8 pages of 4 tokens, the KV cache has 6 pages", 31, 24),
    ],
)
def test_what_can_never_run_is_refused_with_the_arithmetic(
    prompt: int, max_tokens: int, message: str, needed: int, limit: int
) -> None:
    scheduler = Scheduler(make_config(max_model_len=32, groups=(KVGroup("full", 6),)))
    with pytest.raises(RequestTooLong, match=message) as caught:
        scheduler.add(make_request(0, range(prompt), max_tokens=max_tokens))
    assert (caught.value.num_tokens, caught.value.limit) == (needed, limit)
    assert not scheduler.has_work()


def test_a_request_that_needs_every_page_runs() -> None:
    config = make_config(max_model_len=32, groups=(KVGroup("full", 6),))
    simulation = Simulation(config)
    request = make_request(0, range(10), max_tokens=15)  # 24 computed positions
    simulation.add(request)
    simulation.run()
    assert simulation.outputs[0] == alone(request, list(range(10)), config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_num_batched_tokens": 4}, "max_num_batched_tokens 4 is below max_num_seqs 8"),
        ({"target_itl_ms": -5.0}, "target_itl_ms is -5.0"),
        ({"target_itl_ms": float("nan")}, "target_itl_ms is nan"),
        ({"page_size": 0}, "page_size is 0"),
        ({"groups": ()}, "without KV groups a prompt is computed in one step"),
        ({"groups": (), "max_num_batched_tokens": 10_000}, "enable_prefix_caching needs KV groups"),
        ({"groups": (KVGroup("sliding", 4),)}, "window set for sliding groups only"),
        ({"groups": (KVGroup("sliding", 4, 0),)}, "window must be at least 1"),
    ],
)
def test_contradictory_configurations_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_a_request_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="num_prompt_tokens is 0"):
        make_request(0, [])


def test_states_change_only_as_the_table_says() -> None:
    request = make_request(0, range(3))
    with pytest.raises(AssertionError, match="NEW -> RUNNING"):
        request.move(State.RUNNING)


# -------------------------------------------------------------------------------------------------------- preemption


def test_a_preempted_request_resumes_with_identical_tokens() -> None:
    config = make_config(groups=(KVGroup("full", 10),))
    simulation = Simulation(config, lag=1)
    requests = [
        make_request(index, range(index * 50, index * 50 + 9), max_tokens=25, arrival=float(index))
        for index in range(3)
    ]
    prompts = [request.tokens.tolist() for request in requests]
    simulation.add(*requests)
    simulation.run()
    assert [request.num_preemptions > 0 for request in requests] == [False, True, True]
    for request, prompt in zip(requests, prompts, strict=True):
        assert simulation.outputs[request.request_id] == alone(request, prompt, config)
    assert len(simulation.first) == 3
    assert simulation.scheduler.load().num_preemptions == sum(each.num_preemptions for each in requests)


def test_the_lowest_priority_gives_way_then_the_youngest() -> None:
    simulation = Simulation(make_config(groups=(KVGroup("full", 12),)))
    low = make_request(0, range(8), max_tokens=20, priority=5, arrival=0.0)
    old = make_request(1, range(50, 58), max_tokens=20, arrival=1.0)
    young = make_request(2, range(90, 98), max_tokens=20, arrival=2.0)
    simulation.add(low, old, young)
    victims: list[Request] = []
    while simulation.scheduler.has_work():
        simulation.step()
        victims += [
            each for each in (low, old, young) if each.state is State.PREEMPTED and each not in victims
        ]
    assert victims == [low, young]


def test_prompt_scores_are_delivered_once_in_spite_of_preemption() -> None:
    config = make_config(groups=(KVGroup("full", 12),), max_num_batched_tokens=8)
    simulation = Simulation(config)
    old = make_request(0, range(8), max_tokens=38)
    simulation.add(old)
    simulation.step()
    scored = make_request(1, range(50, 70), max_tokens=10, prompt_logprobs=0, arrival=1.0)
    simulation.add(scored)
    simulation.run()
    assert scored.num_preemptions
    assert [token for token, _ in simulation.scores[1]] == list(range(51, 70))


def test_a_resumed_request_continues_after_its_given_output() -> None:
    config = make_config()
    prompt = list(range(10))
    whole = alone(make_request(0, prompt, max_tokens=12, seed=3), prompt, config)
    simulation = Simulation(config)
    request = make_request(0, prompt + whole[:5], num_prompt_tokens=10, max_tokens=12, seed=3)
    simulation.add(request)
    simulation.run()
    assert simulation.outputs[0] == whole[5:]


# ---------------------------------------------------------------------------------------------------------- policies


def admission_order(simulation: Simulation) -> list[int]:
    return [init.request.request_id for plan in simulation.plans for init in plan.inits]


def test_fcfs_admits_by_priority_then_arrival() -> None:
    simulation = Simulation(make_config(max_num_seqs=1))
    for index, (priority, arrival) in enumerate([(0, 3.0), (0, 1.0), (1, 0.0), (-1, 9.0)]):
        simulation.add(make_request(index, range(5), priority=priority, arrival=arrival))
    simulation.run()
    assert admission_order(simulation) == [3, 1, 0, 2]


def test_lpm_admits_the_longest_cached_prefix_first() -> None:
    simulation = Simulation(make_config(max_num_seqs=1, policy="lpm"))
    simulation.add(make_request(0, range(24), max_tokens=1))
    simulation.run()
    simulation.add(make_request(1, range(60, 90)))
    simulation.add(make_request(2, [*range(8), *range(60, 80)]))
    simulation.add(make_request(3, [*range(20), *range(60, 70)]))
    simulation.add(make_request(4, range(90, 96), priority=-1))
    simulation.run()
    assert admission_order(simulation) == [0, 4, 3, 2, 1]


def test_wspt_weighs_priority_against_uncached_tokens() -> None:
    simulation = Simulation(make_config(max_num_seqs=1, policy="wspt"))
    simulation.add(make_request(0, range(24), max_tokens=1))
    simulation.run()
    simulation.add(make_request(1, range(60, 80)))  # 1 / 20
    simulation.add(make_request(2, range(80, 90)))  # 1 / 10
    simulation.add(make_request(3, [*range(24), 99]))  # 1 / 1, the rest is cached
    simulation.add(make_request(4, range(30, 60), priority=-3))  # 4 / 30
    simulation.add(make_request(5, range(50, 54), priority=4))  # 1 / 20, later in rank
    simulation.run()
    assert admission_order(simulation) == [0, 3, 4, 2, 1, 5]


@pytest.mark.parametrize("policy", ["lpm", "wspt"])
def test_no_policy_starves_a_request_that_never_scores(policy: str) -> None:
    simulation = Simulation(make_config(max_num_seqs=1, policy=policy, max_num_batched_tokens=128))
    simulation.add(make_request(0, range(5), max_tokens=1))
    simulation.run()
    victim = make_request(1, range(20, 90), max_tokens=1)
    simulation.add(victim)
    others = 0
    while victim.state is State.WAITING:
        simulation.add(make_request(2 + others, range(5), max_tokens=1, arrival=1.0 + others))
        simulation.step()
        others += 1
    assert others == MAX_OVERTAKES + 1


# ------------------------------------------------------------------------------------------------- aborting, failing


def test_aborted_requests_hold_nothing_in_any_state() -> None:
    simulation = Simulation(make_config(max_num_seqs=2, max_num_batched_tokens=8), lag=1)
    requests = [make_request(index, range(index, index + 20), max_tokens=30) for index in range(4)]
    simulation.add(*requests)
    for _ in range(4):
        simulation.step()
    for request in requests:
        simulation.abort(request)
        simulation.abort(request)
    simulation.run()
    load = simulation.scheduler.load()
    assert (load.num_running, load.num_waiting, load.held_pages) == (0, 0, 0)
    assert {request.finish_reason for request in requests} == {"abort"}
    assert simulation.finished == []


def test_a_failed_step_requeues_its_requests_and_forgets_the_cache() -> None:
    config = make_config()
    simulation = Simulation(config, lag=1, events=True)
    request = make_request(0, range(20), max_tokens=12)
    simulation.add(request)
    for _ in range(4):
        simulation.step()
    plan, _ = simulation.in_flight.popleft()
    assert simulation.scheduler.fail(plan) == []
    simulation.scheduler.check()
    simulation.in_flight.clear()
    load = simulation.scheduler.load()
    assert load.free_pages == 256
    assert load.num_waiting == 1
    for pages in simulation.device.pages:
        pages[:] = 0
    simulation.run()
    assert simulation.outputs[0] == alone(request, list(range(20)), config)


def test_a_request_that_breaks_every_step_ends_with_an_error() -> None:
    simulation = Simulation(make_config())
    request = make_request(0, range(20))
    simulation.add(request)
    failed: list[Request] = []
    for _ in range(3):
        assert failed == []
        plan = simulation.plan()
        assert plan is not None
        simulation.in_flight.clear()
        failed = simulation.scheduler.fail(plan)
        simulation.scheduler.check()
    assert failed == [request]
    assert request.finish_reason == "error"
    assert not simulation.scheduler.has_work()


def test_gauges_follow_the_requests() -> None:
    simulation = Simulation(make_config(groups=(KVGroup("full", 20),), max_num_seqs=1))
    simulation.add(make_request(0, range(10), max_tokens=5), make_request(1, range(30, 37), max_tokens=5))
    simulation.step()
    load = simulation.scheduler.load()
    assert (load.num_running, load.num_waiting, load.waiting_tokens) == (1, 1, 7)
    assert (load.held_pages, load.cached_pages, load.free_pages, load.kv_usage) == (3, 0, 17, 3 / 20)
    assert load.in_flight_tokens == 11 + 7
    assert (load.prompt_tokens, load.generation_tokens) == (10, 1)
    simulation.run()
    load = simulation.scheduler.load()
    assert (load.held_pages, load.cached_pages, load.in_flight_tokens) == (0, 5, 0)
    assert (load.prompt_tokens, load.generation_tokens, load.prefix_cache_queries) == (17, 10, 17)
