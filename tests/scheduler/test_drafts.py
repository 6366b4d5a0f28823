"""Steps whose rows have drafts verified: what is kept, where it is cut, and what is known while they are in flight."""

from __future__ import annotations

import numpy as np
import pytest
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.plan import StepPlan, StepResult
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler, StepOutcome
from simulation import Simulation, make_config, make_request


def decoding(request: Request, drafts: int) -> Scheduler:
    """A scheduler whose only request has its first token, 50, and may have `drafts` tokens verified in a step."""
    scheduler = Scheduler(make_config(max_draft_tokens=drafts))
    scheduler.add(request)
    plan = scheduler.plan(0.0)
    assert plan is not None
    assert plan.drafts is None
    commit(scheduler, plan, [50])
    return scheduler


def next_plan(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.plan(0.0)
    scheduler.check()
    assert plan is not None
    return plan


def commit(
    scheduler: Scheduler, plan: StepPlan, tokens: list[int], drafted: int | None = None
) -> StepOutcome:
    drafts = None
    if plan.drafts is not None:
        drafts = np.array([len(tokens) - 1 if drafted is None else drafted], np.int32)
    result = StepResult(np.array([len(tokens)], np.int32), np.array(tokens, np.int32), drafted=drafts)
    outcome = scheduler.commit(plan, result, 0.0)
    scheduler.check()
    return outcome


def test_all_tokens_of_a_step_are_delivered_and_the_next_one_begins_after_them() -> None:
    scheduler = decoding(make_request(0, range(3), max_tokens=30), 4)
    plan = next_plan(scheduler)
    assert (plan.starts.tolist(), plan.lens.tolist(), plan.drafts.tolist()) == ([3], [5], [4])  # type: ignore[union-attr]
    outcome = commit(scheduler, plan, [51, 52, 53], drafted=4)
    assert (outcome.counts.tolist(), outcome.tokens.tolist()) == ([3], [51, 52, 53])
    assert next_plan(scheduler).starts.tolist() == [6]


def test_a_step_planned_meanwhile_begins_at_the_highest_position_possible_until_the_truth_is_known() -> None:
    scheduler = decoding(make_request(0, range(3), max_tokens=30), 4)
    first, second = next_plan(scheduler), next_plan(scheduler)
    assert second.starts.tolist() == [3 + 5]
    commit(scheduler, first, [51], drafted=4)
    assert next_plan(scheduler).starts.tolist() == [4 + 5], "what the second may bring at most"
    commit(scheduler, second, [52, 53, 54, 55, 56])


def test_tokens_after_a_stop_token_are_dropped() -> None:
    request = make_request(0, range(3), max_tokens=30, stop_token_ids=[9], logprobs=0)
    scheduler = decoding(request, 4)
    outcome = commit(scheduler, next_plan(scheduler), [51, 9, 52, 53])
    assert (outcome.counts.tolist(), outcome.tokens.tolist()) == ([2], [51, 9])
    assert (request.finish_reason, request.tokens.tolist()) == ("stop", [0, 1, 2, 50, 51, 9])


def test_a_stop_token_before_min_tokens_ends_nothing_within_a_run() -> None:
    request = make_request(0, range(3), max_tokens=30, stop_token_ids=[9], min_tokens=3)
    scheduler = decoding(request, 4)
    outcome = commit(scheduler, next_plan(scheduler), [9, 9, 9, 53])
    assert outcome.tokens.tolist() == [9, 9, 9]
    assert request.finish_reason == "stop"


@pytest.mark.parametrize("max_tokens", [2, 3, 4, 5])
def test_no_row_may_draft_beyond_the_last_token_of_its_request(max_tokens: int) -> None:
    request = make_request(0, range(3), max_tokens=max_tokens)
    scheduler = decoding(request, 9)
    plan = next_plan(scheduler)
    assert plan.lens.tolist() == [max_tokens - 1], "each token of the row draws one more"
    commit(scheduler, plan, list(range(60, 59 + max_tokens)))
    assert (request.finish_reason, len(request.tokens)) == ("length", 3 + max_tokens)


def test_a_request_that_drafts_in_flight_may_end_is_waited_for() -> None:
    request = make_request(0, range(3), max_tokens=6)
    scheduler = decoding(request, 9)
    plan = next_plan(scheduler)
    assert plan.drafts is not None
    assert plan.drafts.tolist() == [4]
    assert scheduler.plan(0.0) is None
    commit(scheduler, plan, [51, 52], drafted=4)
    assert next_plan(scheduler).drafts.tolist() == [2]  # type: ignore[union-attr]


def test_without_pages_for_drafts_nobody_drafts_but_all_go_on() -> None:
    requests = [make_request(index, range(index, index + 3), max_tokens=9) for index in range(2)]
    scheduler = Scheduler(make_config(groups=(KVGroup("full", 4),), page_size=4, max_draft_tokens=6))
    for request in requests:
        scheduler.add(request)
    plan = next_plan(scheduler)
    result = StepResult(np.ones(2, np.int32), np.array([50, 50], np.int32))
    scheduler.commit(plan, result, 0.0)
    plan = next_plan(scheduler)
    assert (plan.lens.tolist(), plan.drafts) == ([1, 1], None)
    assert scheduler.load().num_preemptions == 0


def test_drafts_never_exceed_the_tokens_of_a_step() -> None:
    scheduler = Scheduler(make_config(max_num_seqs=8, max_num_batched_tokens=12, max_draft_tokens=6))
    for index in range(4):
        scheduler.add(make_request(index, range(index, index + 3), max_tokens=60))
    plan = next_plan(scheduler)
    scheduler.commit(plan, StepResult(np.ones(4, np.int32), np.full(4, 50, np.int32)), 0.0)
    plan = next_plan(scheduler)
    assert (plan.lens.tolist(), plan.num_tokens) == ([7, 3, 1, 1], 12)


def test_counters_tell_how_often_each_position_of_a_draft_was_right() -> None:
    scheduler = decoding(make_request(0, range(3), max_tokens=60), 4)
    for count in (1, 3, 5, 2):
        commit(scheduler, next_plan(scheduler), [60] * count, drafted=4)
    load = scheduler.load()
    assert (load.num_drafts, load.num_draft_tokens, load.num_accepted_tokens) == (4, 16, 7)
    assert load.accepted_at == [3, 2, 1, 1]
    assert load.generation_tokens == 1 + 11


def test_a_step_tells_how_many_drafts_of_each_request_were_right() -> None:
    scheduler = decoding(make_request(0, range(3), max_tokens=60, stop_token_ids=[9]), 4)
    outcome = commit(scheduler, next_plan(scheduler), [51, 52, 53], drafted=4)
    assert (outcome.drafted.tolist(), outcome.accepted.tolist()) == ([4], [2])  # type: ignore[union-attr]
    outcome = commit(scheduler, next_plan(scheduler), [54], drafted=0)
    assert (outcome.drafted, outcome.accepted) == (None, None)
    outcome = commit(scheduler, next_plan(scheduler), [55, 9, 56], drafted=2)
    assert outcome.tokens.tolist() == [55, 9]
    assert (outcome.drafted.tolist(), outcome.accepted.tolist()) == ([2], [2]), "whatever was cut"  # type: ignore[union-attr]


def test_all_tokens_of_a_row_that_cannot_go_on_were_drafts() -> None:
    scheduler = decoding(make_request(0, range(3), max_tokens=60), 4)
    tokens, drafted = np.array([51, 52], np.int32), np.array([4], np.int32)
    ended = StepResult(np.array([2], np.int32), tokens, drafted=drafted, ended=[(0, "stop")])
    outcome = scheduler.commit(next_plan(scheduler), ended, 0.0)
    assert outcome.accepted.tolist() == [2]  # type: ignore[union-attr]
    load = scheduler.load()
    assert (load.num_drafts, load.num_draft_tokens, load.num_accepted_tokens) == (1, 4, 2)


def test_time_for_drafts_is_counted_also_where_none_were_found() -> None:
    scheduler = decoding(make_request(0, range(3), max_tokens=60), 4)
    for found in (4, 0):
        counts, tokens = np.ones(1, np.int32), np.array([60], np.int32)
        drafted = np.array([found], np.int32)
        result = StepResult(counts, tokens, drafted=drafted, device_seconds=2.0, draft_seconds=0.5)
        scheduler.commit(next_plan(scheduler), result, 0.0)
    load = scheduler.load()
    assert (load.draft_seconds, load.verify_steps, load.verify_step_seconds) == (1.0, 1, 2.0)
    assert 0 < load.draft_length < 4


def test_log_probabilities_of_dropped_tokens_are_dropped() -> None:
    requests = [
        make_request(index, [index, 7, 8], max_tokens=25, logprobs=0, stop_token_ids=list(range(40)))
        for index in range(6)
    ]
    simulation = Simulation(make_config(max_draft_tokens=6), lag=1)
    simulation.add(*requests)
    scored: dict[int, list[int]] = {request.request_id: [] for request in requests}
    while simulation.scheduler.has_work():
        plan = simulation.plan()
        if simulation.in_flight and (plan is None or len(simulation.in_flight) > 1):
            for request, entry in simulation.commit().logprobs:
                scored[request.request_id] += entry.token_ids.tolist()
    assert scored == simulation.outputs
    assert any(request.finish_reason == "stop" for request in requests)


def test_more_tokens_than_were_drafted_are_refused() -> None:
    scheduler = decoding(make_request(0, range(3), max_tokens=30), 4)
    plan = next_plan(scheduler)
    with pytest.raises(AssertionError, match="at most one for each draft"):
        commit(scheduler, plan, [51, 52, 53], drafted=1)


def test_where_nobody_drafts_only_one_step_in_a_few_has_room_until_a_request_comes() -> None:
    scheduler = decoding(make_request(0, range(3), max_tokens=100), 4)
    granted = []
    for _ in range(60):
        plan = next_plan(scheduler)
        granted.append(plan.drafts is not None)
        commit(scheduler, plan, [60], drafted=0)
    assert all(granted[:4])
    assert granted[-16:].count(True) == 1
    scheduler.add(make_request(1, range(9, 12), max_tokens=9))
    plan = next_plan(scheduler)
    result = StepResult(np.ones(2, np.int32), np.array([61, 62], np.int32))
    if plan.drafts is not None:
        result.drafted = np.zeros(2, np.int32)
    scheduler.commit(plan, result, 0.0)
    assert next_plan(scheduler).drafts is not None


def test_drafts_bring_room_for_drafts_in_every_step_back() -> None:
    scheduler = decoding(make_request(0, range(3), max_tokens=100), 4)
    for _ in range(20):
        commit(scheduler, next_plan(scheduler), [60], drafted=0)
    while (plan := next_plan(scheduler)).drafts is None:
        commit(scheduler, plan, [60])
    commit(scheduler, plan, [60, 61], drafted=2)
    for _ in range(4):
        plan = next_plan(scheduler)
        assert plan.drafts is not None
        commit(scheduler, plan, [60], drafted=0)
