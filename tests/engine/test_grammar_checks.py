"""Who is compiled when, and who is told: the queue of the grammar process, with children that do as they are told."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from penstock.engine.grammar import checks as checks_module
from penstock.engine.grammar.attempt import Limits, Verdict
from penstock.engine.grammar.checks import MAX_ATTEMPTS, MAX_WAITING, Asker, Checks
from penstock.engine.grammar.compile import GrammarError
from penstock.engine.grammar.verdicts import PASSING_S, Verdicts
from penstock.scheduler.grammar_messages import CheckGrammar, GrammarVerdict
from penstock.scheduler.messages import GrammarSpec

LIMIT_S = 20.0
MIB = 1 << 20


def obey(spec: GrammarSpec) -> None:
    """Stands for a compiler, in the child."""
    match spec.text.split():
        case ["forever", *_]:
            signal.pause()
        case ["bad", *_]:
            raise GrammarError("no good")
        case ["eat", *_]:
            bytearray(4096 * MIB)
        case ["abort", *_]:
            os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'")
            os.abort()
        case ["segfault", *_]:
            os.kill(os.getpid(), signal.SIGSEGV)
        case ["chatty", *_]:
            with contextlib.suppress(OSError):  # as C++ does
                for _ in range(20):
                    os.write(2, b"warning\n" * 8192)


class Desk:
    """A `Checks`, and what it has told. Counts the children it starts."""

    def __init__(self, timeout_s: float = LIMIT_S) -> None:
        self.told: dict[Asker, GrammarVerdict] = {}
        self.order: list[Asker] = []
        self.checks = Checks(obey, Limits(timeout_s, 64 * MIB), self.tell)
        self.pids: list[int] = []

    def tell(self, frontend_id: int, verdict: GrammarVerdict) -> None:
        asker = Asker(frontend_id, verdict.check_id)
        assert asker not in self.told
        self.told[asker] = verdict
        self.order.append(asker)

    def ask(self, check_id: int, text: str, frontend_id: int = 0) -> Asker:
        self.checks.ask(frontend_id, CheckGrammar(check_id, GrammarSpec("regex", text)))
        return Asker(frontend_id, check_id)

    def advance(self) -> None:
        self.checks.advance()
        self.pids += [attempt.pid for attempt in self.checks._attempts if attempt.pid not in self.pids]

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline
            self.advance()
            select.select(self.checks.descriptors, [], [], 0.01)

    def verdict(self, asker: Asker) -> GrammarVerdict:
        self.until(lambda: asker in self.told)
        return self.told[asker]


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.checks.close()


def test_verdicts_say_what_happened_in_the_child(desk: Desk) -> None:
    assert desk.verdict(desk.ask(1, "fine")).outcome == "ok"
    bad = desk.verdict(desk.ask(2, "bad"))
    assert (bad.outcome, bad.message) == ("refused", "no good")
    assert desk.verdict(desk.ask(3, "chatty")).outcome == "ok"
    crash = desk.verdict(desk.ask(4, "segfault"))
    assert crash.outcome == "crash"
    assert "SIGSEGV" in crash.message


@pytest.mark.parametrize("text", ["eat", "abort"])
def test_too_much_memory_is_a_verdict_that_names_limit_and_option(desk: Desk, text: str) -> None:
    verdict = desk.verdict(desk.ask(1, text))
    assert verdict.outcome == "memory"
    assert "64 MiB" in verdict.message
    assert "--grammar-compile-memory" in verdict.message


def test_a_child_out_of_time_is_killed_and_the_verdict_names_limit_and_option() -> None:
    desk = Desk(timeout_s=0.05)
    verdict = desk.verdict(desk.ask(1, "forever"))
    assert verdict.outcome == "timeout"
    assert "0.05 s (--grammar-compile-timeout)" in verdict.message
    (pid,) = desk.pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_grammar_asked_for_by_many_is_compiled_once_and_one_of_them_is_told_how_long(desk: Desk) -> None:
    askers = [desk.ask(number, "forever", frontend_id=number % 2) for number in range(5)]
    desk.advance()
    (pid,) = desk.pids
    os.kill(pid, signal.SIGKILL)
    verdicts = [desk.verdict(asker) for asker in askers]
    assert [verdict.outcome for verdict in verdicts] == ["crash"] * 5
    assert [verdict.seconds is not None for verdict in verdicts] == [True, False, False, False, False]


def test_a_known_grammar_is_not_compiled_again(desk: Desk) -> None:
    desk.verdict(desk.ask(1, "fine"))
    desk.verdict(desk.ask(2, "bad"))
    started = len(desk.pids)
    assert desk.ask(3, "fine") in desk.told
    assert desk.told[desk.ask(4, "bad")].message == "no good"
    assert len(desk.pids) == started


def test_grammars_beyond_the_attempts_wait_their_turn_and_beyond_the_queue_come_back_later(
    desk: Desk,
) -> None:
    for number in range(MAX_ATTEMPTS):
        desk.ask(number, f"forever {number}")
    desk.advance()
    assert len(desk.pids) == MAX_ATTEMPTS
    waiting = [desk.ask(100 + number, f"bad {number}") for number in range(MAX_WAITING)]
    desk.advance()
    assert len(desk.pids) == MAX_ATTEMPTS
    refused = desk.told[desk.ask(999, "one more")]
    assert refused.outcome == "unavailable"
    assert refused.retry_after_s > 0
    for pid in desk.pids[1:MAX_ATTEMPTS]:
        os.kill(pid, signal.SIGKILL)
    desk.until(lambda: all(asker in desk.told for asker in waiting[:3]))
    for pid in desk.pids[:1]:
        os.kill(pid, signal.SIGKILL)


def test_waiting_grammars_are_begun_in_the_order_in_which_they_came(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks_module, "MAX_ATTEMPTS", 1)
    askers = [desk.ask(number, f"grammar {number}") for number in (3, 1, 2)]
    desk.until(lambda: len(desk.told) == 3)
    assert desk.order == askers


def test_a_stuck_grammar_delays_no_other(desk: Desk) -> None:
    stuck = desk.ask(1, "forever")
    desk.advance()
    assert desk.verdict(desk.ask(2, "fine")).outcome == "ok"
    assert stuck not in desk.told


def test_what_nobody_waits_for_any_more_is_not_begun(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_module, "MAX_ATTEMPTS", 1)
    desk.ask(1, "forever")
    desk.advance()
    left = desk.ask(2, "fine two")
    also_left, stays = desk.ask(3, "fine three", frontend_id=1), desk.ask(4, "fine three")
    gone = desk.ask(5, "fine five", frontend_id=1)
    desk.checks.forget([left])
    desk.checks.forget_frontend(1)
    os.kill(desk.pids[0], signal.SIGKILL)
    desk.verdict(stays)
    desk.until(lambda: desk.checks.is_idle)
    assert len(desk.pids) <= 2
    assert not {left, also_left, gone} & desk.told.keys()


def test_a_grammar_begun_for_somebody_who_left_is_known_to_the_next_one(desk: Desk) -> None:
    asker = desk.ask(1, "bad")
    desk.advance()
    desk.checks.forget([asker])
    assert desk.checks.is_idle
    desk.until(lambda: not desk.checks._attempts)
    assert desk.told == {}
    assert desk.told.get(desk.ask(2, "bad")) is not None


def test_verdicts_that_may_be_the_machines_fault_pass_and_others_stay() -> None:
    known = Verdicts()
    for outcome in ("ok", "refused", "memory", "timeout", "crash"):
        known.put(outcome.encode(), Verdict(outcome), now=0.0)
    after = {
        outcome
        for outcome in ("ok", "refused", "memory", "timeout", "crash")
        if known.get(outcome.encode(), PASSING_S + 1)
    }
    assert after == {"ok", "refused", "memory"}


def test_the_verdicts_used_least_recently_are_forgotten_first() -> None:
    known = Verdicts(capacity=2)
    known.put(b"a", Verdict("ok"), 0.0)
    known.put(b"b", Verdict("ok"), 0.0)
    assert known.get(b"a", 0.0)
    known.put(b"c", Verdict("ok"), 0.0)
    assert known.get(b"a", 0.0)
    assert known.get(b"b", 0.0) is None
