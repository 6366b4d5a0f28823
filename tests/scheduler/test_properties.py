"""Whatever arrives in whatever order, pages are conserved and every request's output is what it is alone."""

from __future__ import annotations

from dataclasses import dataclass
from unittest.mock import patch

from fake_device import VOCAB, mix, run_alone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.scheduler import prefill_budget
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.requests import Request, State
from penstock.scheduler.scheduler import RequestTooLong
from simulation import Simulation, make_config, make_request

MAX_MODEL_LEN = 48


def examples(count: int) -> settings:
    """The same examples every time, however slow the machine."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        derandomize=True, database=None, deadline=None, max_examples=count, suppress_health_check=slow
    )


@dataclass(frozen=True)
class Arrival:
    """A request to be made, when it arrives and when (if at all) it is aborted, in steps."""

    step: int
    prefix: int  # which of a few shared token sequences it begins with
    shared: int  # how many tokens of it
    own: int  # tokens that are its own
    resumed: int  # leading output tokens that are given
    max_tokens: int
    min_tokens: int
    stops: bool
    priority: int
    salt: str
    scored: bool
    abort_after: int | None


ARRIVALS = st.builds(
    Arrival,
    step=st.integers(0, 8),
    prefix=st.integers(0, 1),
    shared=st.integers(0, 24),
    own=st.integers(0, 12),
    resumed=st.sampled_from([0, 0, 0, 1, 3]),
    max_tokens=st.integers(0, 30),
    min_tokens=st.sampled_from([0, 0, 4]),
    stops=st.booleans(),
    priority=st.sampled_from([0, 0, 0, -1, 2]),
    salt=st.sampled_from(["", "", "", "tenant"]),
    scored=st.sampled_from([False, False, False, True]),
    abort_after=st.sampled_from([None, None, None, 1, 4, 9]),
)

# (full, sliding, window): pages beyond what the longest request needs in each group, -1 for no such group
POOLS = st.one_of(
    st.tuples(st.integers(-4, 14), st.just(-1), st.just(0)),
    st.tuples(st.integers(0, 14), st.integers(1, 14), st.integers(1, 11)),
    st.tuples(st.just(-1), st.integers(1, 14), st.integers(1, 11)),
)


def build_groups(pools: tuple[int, int, int], page_size: int) -> tuple[KVGroup, ...]:
    full, sliding, window = pools
    groups = []
    if sliding < 0 or full >= 0:
        groups.append(KVGroup("full", max(1, -(-MAX_MODEL_LEN // page_size) + full)))
    if sliding >= 0:
        groups.append(KVGroup("sliding", -(-window // page_size) + sliding, window))
    return tuple(groups)


def build(index: int, arrival: Arrival) -> Request | None:
    prompt = [mix(arrival.prefix, position) % VOCAB for position in range(arrival.shared)]
    prompt += [mix(99, index % 5, position) % VOCAB for position in range(arrival.own)]
    given_output = [mix(7, position) % VOCAB for position in range(min(arrival.resumed, arrival.max_tokens))]
    if not prompt:
        return None
    return make_request(
        index,
        prompt + given_output,
        num_prompt_tokens=len(prompt),
        priority=arrival.priority,
        cache_salt=arrival.salt,
        arrival=float(arrival.step),
        max_tokens=arrival.max_tokens,
        min_tokens=arrival.min_tokens,
        stop_token_ids=[1, 2, 3, 5, 8, 13, 21] if arrival.stops else [],
        prompt_logprobs=0 if arrival.scored else -1,
    )


def never_fits(simulation: Simulation, request: Request) -> bool:
    """By counting, for each group, the pages that hold all of the longest window the request comes to see."""
    config = simulation.scheduler.config
    size = config.page_size
    end = min(request.num_prompt_tokens + request.sampling.max_tokens, config.max_model_len)
    positions = max(end - 1, len(request.tokens))
    for group in config.groups:
        window = group.window or positions
        most = max(
            len({position // size for position in range(max(0, query - window + 1), query + 1)})
            for query in range(positions)
        )
        # a window that does not start at a page's edge may need a page more later on: the scheduler may refuse it
        if most > group.num_pages or (group.window and most + 1 > group.num_pages):
            return True
    return False


@examples(220)
@given(
    arrivals=st.lists(ARRIVALS, min_size=1, max_size=14),
    pools=POOLS,
    page_size=st.integers(1, 5),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(0, 20),
    lag=st.integers(0, 2),
    policy=st.sampled_from(["fcfs", "lpm", "wspt"]),
    caching=st.sampled_from([True, True, True, False]),
    target_ms=st.sampled_from([0.0, 4.0, 20.0]),
    min_chunk=st.sampled_from([1, 3, 16]),
    drafts_and_stages=st.sampled_from([(0, 1), (0, 1), (1, 1), (3, 1), (7, 1), (0, 2), (0, 3)]),
)
def test_every_request_ends_as_it_would_alone_and_no_page_is_lost(
    arrivals: list[Arrival],
    pools: tuple[int, int, int],
    page_size: int,
    max_num_seqs: int,
    budget: int,
    lag: int,
    policy: str,
    caching: bool,
    target_ms: float,
    min_chunk: int,
    drafts_and_stages: tuple[int, int],
) -> None:
    groups = build_groups(pools, page_size)
    config = make_config(
        groups=groups,
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + budget,
        max_model_len=MAX_MODEL_LEN,
        policy=policy,
        enable_prefix_caching=caching,
        target_itl_ms=target_ms,
        max_draft_tokens=drafts_and_stages[0],
        num_stages=drafts_and_stages[1],
    )
    simulation = Simulation(config, lag, events=True, seconds=lambda plan: 1e-3 * (2 + plan.num_tokens))
    todo = sorted(enumerate(arrivals), key=lambda pair: pair[1].step)
    aborts: dict[int, list[Request]] = {}
    taken: list[tuple[Request, list[int]]] = []
    step = 0
    while todo or simulation.scheduler.has_work():
        while todo and todo[0][1].step <= step:
            index, arrival = todo.pop(0)
            request = build(index, arrival)
            if request is None:
                continue
            tokens = request.tokens.tolist()
            try:
                simulation.add(request)
            except RequestTooLong:
                assert never_fits(simulation, request)
                continue
            taken.append((request, tokens))
            if arrival.abort_after is not None:
                aborts.setdefault(step + arrival.abort_after, []).append(request)
        for request in aborts.pop(step, []):
            simulation.abort(request)
        with patch.object(prefill_budget, "MIN_CHUNK", min_chunk):
            simulation.step()
        step += 1
        assert step < 3000, "no progress"

    for request, tokens in taken:
        expected, reason = run_alone(
            tokens, request.num_prompt_tokens, request.sampling, MAX_MODEL_LEN, config.groups
        )
        resumed = len(tokens) - request.num_prompt_tokens
        output = simulation.outputs[request.request_id]
        if request.finish_reason == "abort":
            assert output == expected[resumed:][: len(output)]
            continue
        assert request.state is State.FINISHED
        assert output == expected[resumed:]
        assert request.finish_reason == reason
        assert request.tokens.tolist() == tokens[: request.num_prompt_tokens] + expected
        if request.sampling.prompt_logprobs >= 0:
            scored = [token for token, _ in simulation.scores[request.request_id]]
            assert scored == tokens[1 : request.num_prompt_tokens], "each prompt position is scored once"
    load = simulation.scheduler.load()
    assert (load.num_running, load.num_waiting, load.held_pages, load.in_flight_tokens) == (0, 0, 0, 0)
    assert load.generation_tokens == sum(map(len, simulation.outputs.values()))
    simulation.scheduler.flush_cache()
    simulation.scheduler.check()
    assert simulation.scheduler.load().free_pages == sum(group.num_pages for group in groups)


def common_prefix(one: list[int], other: list[int]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=30)
PROMPTS = st.lists(TOKENS, min_size=2, max_size=12)


@examples(80)
@given(
    prompts=st.lists(st.tuples(TOKENS, st.sampled_from(["", "", "a"])), min_size=2, max_size=12),
    page_size=st.integers(1, 5),
    max_tokens=st.integers(1, 6),
)
def test_cached_prefix_is_the_longest_common_one_with_all_of_its_salt_that_ran_before(
    prompts: list[tuple[list[int], str]], page_size: int, max_tokens: int
) -> None:
    simulation = Simulation(make_config(page_size=page_size, groups=(KVGroup("full", 1000),)))
    before: dict[str, list[list[int]]] = {"": [], "a": []}
    for index, (prompt, salt) in enumerate(prompts):
        request = make_request(index, prompt, cache_salt=salt, max_tokens=max_tokens)
        simulation.add(request)
        simulation.run()
        longest = max((common_prefix(prompt, tokens) for tokens in before[salt]), default=0)
        assert request.num_cached_tokens == min(longest, len(prompt) - 1) // page_size * page_size
        before[salt].append(request.tokens.tolist()[:-1])  # the last token is never computed


@examples(80)
@given(prompts=PROMPTS, page_size=st.integers(1, 5), budget=st.integers(12, 60))
def test_concurrent_requests_share_what_is_planned_before_them(
    prompts: list[list[int]], page_size: int, budget: int
) -> None:
    config = make_config(
        page_size=page_size,
        groups=(KVGroup("full", 1000),),
        max_num_seqs=12,
        max_num_batched_tokens=budget,
    )
    simulation = Simulation(config, lag=1)
    requests = [make_request(index, prompt, max_tokens=1) for index, prompt in enumerate(prompts)]
    simulation.add(*requests)
    simulation.run()
    for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
        longest = max((common_prefix(prompt, earlier) for earlier in prompts[:index]), default=0)
        assert request.num_cached_tokens == min(longest, len(prompt) - 1) // page_size * page_size
