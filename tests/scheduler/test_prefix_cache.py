"""What is cached, shared and evicted, page by page and group by group."""

from __future__ import annotations

import pytest
from penstock.scheduler.groups import KVGroup
from simulation import Simulation, make_config, make_request


def run_one(simulation: Simulation, request_id: int, tokens: list[int] | range, **fields: object) -> int:
    """Run one request to its end; returns its cached tokens."""
    request = make_request(request_id, tokens, **({"max_tokens": 1} | fields))  # type: ignore[arg-type]
    simulation.add(request)
    simulation.run()
    return request.num_cached_tokens


@pytest.mark.parametrize("budget", [2048, 600])
def test_eight_cold_requests_compute_their_shared_prefix_once(budget: int) -> None:
    config = make_config(
        max_model_len=1600, max_num_batched_tokens=budget, page_size=16, groups=(KVGroup("full", 400),)
    )
    simulation = Simulation(config, lag=1)
    simulation.add(*(make_request(index, [*range(1536), *([index] * 5)], max_tokens=1) for index in range(8)))
    simulation.run()
    assert simulation.device.computed_tokens == 1536 + 8 * 5
    if budget == 2048:
        assert len(simulation.plans) == 1


def test_salts_do_not_share() -> None:
    simulation = Simulation(make_config())
    assert run_one(simulation, 0, range(20), cache_salt="a") == 0
    assert run_one(simulation, 1, range(20), cache_salt="b") == 0
    assert run_one(simulation, 2, range(20)) == 0
    assert run_one(simulation, 3, range(20), cache_salt="a") == 16


def test_output_is_cached_up_to_the_last_computed_token() -> None:
    simulation = Simulation(make_config())
    request = make_request(0, range(10), max_tokens=7)
    simulation.add(request)
    simulation.run()
    assert run_one(simulation, 1, [*request.tokens.tolist(), 1, 2, 3]) == 16  # 17 tokens, 16 computed


def test_prompt_scores_need_every_position_computed_but_leave_the_cache_useful() -> None:
    simulation = Simulation(make_config())
    assert run_one(simulation, 0, range(20), prompt_logprobs=0) == 0
    assert run_one(simulation, 1, range(20), prompt_logprobs=0) == 0
    assert run_one(simulation, 2, range(20)) == 16


def test_without_prefix_caching_nothing_is_kept() -> None:
    simulation = Simulation(make_config(enable_prefix_caching=False))
    assert run_one(simulation, 0, range(20)) == 0
    assert run_one(simulation, 1, range(20)) == 0
    load = simulation.scheduler.load()
    assert (load.cached_pages, load.free_pages, load.prefix_cache_queries) == (0, 256, 0)


def test_the_least_recently_used_leaf_goes_first_and_a_prefix_outlives_its_continuation() -> None:
    simulation = Simulation(make_config(groups=(KVGroup("full", 8),)))
    run_one(simulation, 0, range(12))
    run_one(simulation, 1, range(50, 62))
    run_one(simulation, 2, range(12))  # touches the first again: the second is the older one now
    run_one(simulation, 3, range(80, 92))  # needs 3 pages, 2 are free
    assert simulation.scheduler.load().evicted_pages == 1
    assert run_one(simulation, 4, range(50, 62)) == 8
    assert run_one(simulation, 5, range(12)) == 8


def test_a_flush_drops_what_nobody_holds() -> None:
    simulation = Simulation(make_config())
    run_one(simulation, 0, range(20))
    simulation.add(make_request(1, range(50, 70), max_tokens=9))
    simulation.step()
    assert simulation.scheduler.flush_cache() == 5
    simulation.scheduler.check()
    assert run_one(simulation, 2, range(20)) == 0


def test_repeated_hits_do_not_make_the_eviction_heap_grow() -> None:
    simulation = Simulation(make_config(groups=(KVGroup("full", 16), KVGroup("sliding", 16, 6))))
    for index in range(300):
        run_one(simulation, index, range(20))
    for heap, pool in zip(simulation.scheduler._kv.tree._heaps, simulation.scheduler._kv.pools, strict=True):
        assert len(heap) <= 2 * pool.num_pages + 65


# -------------------------------------------------------------------------------------------------- sliding windows

WINDOWED = (KVGroup("full", 64), KVGroup("sliding", 12, 8))


def test_a_running_request_holds_only_its_window_in_a_sliding_group() -> None:
    simulation = Simulation(make_config(groups=WINDOWED, max_num_batched_tokens=8))
    simulation.add(make_request(0, range(60), max_tokens=40))
    full, sliding = simulation.scheduler._kv.pools
    most = 0
    while simulation.scheduler.has_work():
        simulation.step()
        most = max(most, sliding.num_held)
    assert most <= 5  # a window of 8 and a chunk of 8 lie on at most 5 pages of 4
    assert full.num_cached == 24


def test_a_hit_needs_only_the_last_window_of_a_sliding_group() -> None:
    simulation = Simulation(make_config(groups=WINDOWED, max_num_batched_tokens=8))
    run_one(simulation, 0, range(41))
    sliding = simulation.scheduler._kv.pools[1]
    assert sliding.num_cached < 41 // 4 + 1
    run_one(simulation, 1, range(60, 77))  # evicts early pages of the sliding group alone
    assert simulation.scheduler.load().evicted_pages
    assert run_one(simulation, 2, [*range(40), 1, 2]) == 40
    nodes = simulation.scheduler._kv.tree.nodes()
    assert any(node.pages[0] >= 0 > node.pages[1] for node in nodes), "a page of one group went alone"


def test_a_prefix_without_its_window_is_no_hit_and_heals() -> None:
    simulation = Simulation(make_config(groups=(KVGroup("full", 64), KVGroup("sliding", 8, 8))))
    run_one(simulation, 0, range(24))
    run_one(simulation, 1, range(60, 92))  # takes all pages of the sliding group
    assert run_one(simulation, 2, [*range(24), 5]) == 0
    assert run_one(simulation, 3, [*range(24), 6]) == 24


def test_a_model_of_sliding_groups_alone_caches_and_forgets() -> None:
    simulation = Simulation(make_config(groups=(KVGroup("sliding", 10, 8),), max_num_batched_tokens=8))
    assert run_one(simulation, 0, range(40)) == 0
    assert run_one(simulation, 1, [*range(36), 5]) == 36
    for index in range(2, 8):
        run_one(simulation, index, range(index * 100, index * 100 + 30))
    assert run_one(simulation, 9, range(40)) == 0
    simulation.scheduler.flush_cache()
    simulation.scheduler.check()
    assert simulation.scheduler._kv.tree.roots == {}
