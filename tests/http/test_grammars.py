"""The front end asks the grammar process about each grammar, remembers what is sound, and survives that process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from fake_grammar import LIMIT_S
from http_family import Family, family, wait_until
from penstock.scheduler.messages import GrammarSpec
from penstock.server.requests import grammars as grammars_module
from penstock.server.requests.grammars import GrammarRefused, GrammarUnavailable


@pytest.fixture
def served() -> Iterator[Family]:
    with family() as running:
        yield running


def spec(text: str) -> GrammarSpec:
    return GrammarSpec("regex", text)


def begin(served: Family, text: str) -> Future[None]:
    """A check under way in the front end's event loop, as a request handler makes it."""
    return asyncio.run_coroutine_threadsafe(served.services.grammars.check(spec(text)), served.loop)


def check(served: Family, text: str) -> None:
    begin(served, text).result(LIMIT_S)


def asked(served: Family, number: int) -> None:
    served.grammar.wait_for(lambda: len(served.grammar.checks) >= number, f"check {number}")


def test_a_sound_grammar_is_asked_for_once_and_then_known(served: Family) -> None:
    for _ in range(3):
        check(served, "a")
    check(served, "b")
    assert served.grammar.specs == [spec("a"), spec("b")]
    assert served.metric("sglang:num_grammar_total") == 4
    assert served.metric("sglang:num_grammar_cache_hit_total") == 2
    assert served.metric("sglang:grammar_compilation_time_seconds_count") == 2


def test_the_same_text_in_another_language_is_another_grammar(served: Family) -> None:
    check(served, "a")
    other = served.services.grammars.check(GrammarSpec("ebnf", "a"))
    asyncio.run_coroutine_threadsafe(other, served.loop).result(LIMIT_S)
    assert len(served.grammar.specs) == 2


@pytest.mark.parametrize(
    ("outcome", "metric"),
    [
        ("refused", "sglang:num_grammar_aborted_total"),
        ("memory", "sglang:num_grammar_aborted_total"),
        ("crash", "sglang:num_grammar_aborted_total"),
        ("timeout", "sglang:num_grammar_timeout_total"),
    ],
)
def test_a_refusal_carries_its_reason_is_counted_and_is_asked_again(
    served: Family, outcome: str, metric: str
) -> None:
    served.grammar.verdict = lambda spec: (outcome, "because")
    for number in (1, 2):
        with pytest.raises(GrammarRefused, match="because"):
            check(served, "a")
        assert served.metric(metric) == number
        assert len(served.grammar.checks) == number


def test_a_busy_process_means_come_back_later(served: Family) -> None:
    served.grammar.verdict = lambda spec: ("unavailable", "256 wait already")
    with pytest.raises(GrammarUnavailable, match="256 wait already"):
        check(served, "a")
    assert served.metric("sglang:num_grammar_aborted_total") == 0


def test_requests_that_wait_for_one_grammar_ask_once_and_get_one_verdict(served: Family) -> None:
    served.grammar.hold = True
    waiting = [begin(served, "a") for _ in range(5)]
    wait_until(lambda: served.metric("sglang:num_grammar_queue_reqs") == 5, "five requests to wait")
    served.grammar.hold = False
    for one in waiting:
        assert one.result(LIMIT_S) is None
    assert len(served.grammar.checks) == 1
    assert served.metric("sglang:num_grammar_queue_reqs") == 0


def test_a_slow_grammar_holds_up_no_other_request(served: Family) -> None:
    check(served, "known")
    served.grammar.hold = True
    slow = begin(served, "slow")
    asked(served, 2)
    check(served, "known")
    assert served.client.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 3}).status_code == 200
    assert not slow.done()
    served.grammar.hold = False
    slow.result(LIMIT_S)


def test_when_the_last_request_has_left_the_process_may_forget_the_grammar(served: Family) -> None:
    served.grammar.hold = True
    first, second = begin(served, "a"), begin(served, "a")
    wait_until(lambda: served.metric("sglang:num_grammar_queue_reqs") == 2, "both to wait")
    asked(served, 1)
    first.cancel()
    wait_until(lambda: served.metric("sglang:num_grammar_queue_reqs") == 1, "one to leave")
    assert served.grammar.forgotten == []
    second.cancel()
    served.grammar.wait_for(lambda: bool(served.grammar.forgotten), "the check to be forgotten")
    assert served.grammar.forgotten == [served.grammar.checks[0].check_id]
    assert served.metric("sglang:num_grammar_aborted_total") == 2
    served.grammar.hold = False  # a verdict for nobody
    check(served, "b")


def test_a_check_survives_the_death_of_the_process(served: Family) -> None:
    served.grammar.hold = True
    waiting = begin(served, "a")
    asked(served, 1)
    served.grammar.stop()
    also_waiting = begin(served, "b")
    served.new_grammar(incarnation=2)
    for one in (waiting, also_waiting):
        one.result(LIMIT_S)
    assert sorted(each.text for each in served.grammar.specs) == ["a", "b"]


def test_a_greeting_of_a_process_that_was_replaced_is_ignored(served: Family) -> None:
    served.grammar.stop()
    new = served.new_grammar(incarnation=5)
    check(served, "a")
    old = served.new_grammar(incarnation=4)
    check(served, "b")
    new.stop()
    assert [each.text for each in new.specs] == ["a", "b"]
    assert old.specs == []


def test_checks_wait_for_a_process_that_is_still_starting() -> None:
    with family(wait=False) as served:
        served.engine.start()
        waiting = begin(served, "a")
        served.grammar.start()
        waiting.result(LIMIT_S)


def test_without_a_process_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars_module, "START_ALLOWANCE_S", 0.01)
    with family(wait=False, grammar_compile_timeout_s=0.01) as served:
        served.engine.start()
        with pytest.raises(GrammarUnavailable, match="busy or starting") as raised:
            check(served, "a")
        assert raised.value.retry_after_s > 0
        served.grammar.start()
        check(served, "b")
        assert [each.text for each in served.grammar.specs] == ["b"]


def test_at_the_end_of_the_drain_whoever_waits_is_told(served: Family) -> None:
    served.grammar.hold = True
    waiting = begin(served, "a")
    asked(served, 1)
    served.drain()
    served.drain()
    with pytest.raises(GrammarUnavailable, match="stop"):
        waiting.result(LIMIT_S)


def test_only_so_many_grammars_are_remembered(served: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars_module, "MAX_PROVEN", 2)
    for text in ("a", "b", "a", "c", "a", "b"):
        check(served, text)
    assert [each.text for each in served.grammar.specs] == ["a", "b", "c", "b"]
