"""A request waits for its grammar where it holds up nobody; each grammar is compiled once and kept within a bound."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from engine_link import PATIENCE_S, Link
from penstock.engine.build import Built, create_runner
from penstock.engine.core import EngineCore
from penstock.engine.grammar.compile import GrammarError
from penstock.engine.grammar.forced import Spelling
from penstock.engine.grammar.store import Compile, Grammar, GrammarStore, open_compiler
from penstock.engine.grammar.vocabulary import VocabularyError
from penstock.engine.link import FrontEndLink
from penstock.scheduler.messages import (
    Abort,
    EngineConfig,
    GrammarSpec,
    Hello,
    Rejected,
    SamplingParams,
    Submit,
)
from penstock.scheduler.scheduler import Scheduler
from tiny_models import VOCAB_SIZE, make_checkpoint

EOS = 2
DIGITS, LETTERS = GrammarSpec("regex", "[0-9]{4}"), GrammarSpec("regex", "[a-z]{4}")


class Gate:
    """Compiles only what it was told to let through, and notes what it compiled."""

    def __init__(self, compile_grammar: Compile) -> None:
        self.compile_grammar = compile_grammar
        self.begun: SimpleQueue[GrammarSpec] = SimpleQueue()
        self.open = threading.Event()
        self.compiled: list[GrammarSpec] = []

    def __call__(self, spec: GrammarSpec) -> Grammar:
        self.begun.put(spec)
        assert self.open.wait(PATIENCE_S)
        self.compiled.append(spec)
        return self.compile_grammar(spec)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    make_checkpoint("qwen3", path)
    return path


@pytest.fixture(scope="module")
def built(path: Path) -> Iterator[Built]:
    made = create_runner(
        EngineConfig(
            model_dir=str(path), device="cpu", num_threads=1, max_model_len=96, page_size=4, num_pages=200,
            max_num_seqs=8,
        )
    )  # fmt: skip
    yield made
    made.runner.close()


@pytest.fixture(scope="module")
def compiler(path: Path) -> Compile:
    return open_compiler(path, VOCAB_SIZE)


Start = Callable[..., Link]


@pytest.fixture
def start(built: Built, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """start(open_compiler, **scheduler_config) runs an engine and returns the link to it."""
    running: list[tuple[EngineCore, threading.Thread]] = []
    monkeypatch.setattr(built.runner, "close", lambda: None)  # the next engine needs it

    def run(open_it: Callable[[], Compile], **changes: object) -> Link:
        link = Link()
        config = replace(built.scheduler_config, **changes)  # type: ignore[arg-type]
        engine = EngineCore(
            engine_id=0,
            incarnation=1,
            info=built.info,
            link=link,  # type: ignore[arg-type]
            scheduler=Scheduler(config),
            runner=built.runner,
            grammars=GrammarStore(open_it, capacity_bytes=1 << 20, wake=link.wake),
        )
        thread = threading.Thread(target=engine.run)
        thread.start()
        running.append((engine, thread))
        return link

    yield run
    for engine, thread in running:
        engine.stop()
        thread.join()
        engine.close()


def submit(request_id: int, spec: GrammarSpec | None = None, max_tokens: int = 12) -> Submit:
    return Submit(
        request_id=request_id,
        tokens=np.arange(10, 22, dtype="<i4").tobytes(),
        num_prompt_tokens=12,
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, stop_token_ids=[EOS], grammar=spec),
    )


def test_a_grammar_still_compiling_delays_nobody_else(start: Start, compiler: Compile) -> None:
    gate = Gate(compiler)
    link = start(lambda: gate)
    link.say(submit(1, DIGITS))
    assert gate.begun.get(timeout=PATIENCE_S) == DIGITS
    for request_id in (2, 3):
        link.say(submit(request_id))
        assert link.until_finished(1) == ({request_id: "length"}, [request_id])
    gate.open.set()
    assert link.until_finished(1) == ({1: "stop"}, [1])


def test_requests_with_the_same_grammar_share_one_compilation(start: Start, compiler: Compile) -> None:
    gate = Gate(compiler)
    link = start(lambda: gate)
    for request_id in range(1, 6):
        link.say(submit(request_id, DIGITS))
    gate.begun.get(timeout=PATIENCE_S)
    gate.open.set()
    assert link.until_finished(5)[0] == dict.fromkeys(range(1, 6), "stop")
    link.say(submit(6, DIGITS))
    assert link.until_finished(1)[0] == {6: "stop"}
    assert gate.compiled == [DIGITS]


def test_waiting_for_a_grammar_costs_no_place_in_the_queue(built: Built, compiler: Compile) -> None:
    link, gate = Link(), Gate(compiler)
    scheduler = Scheduler(replace(built.scheduler_config, max_num_seqs=1))
    engine = EngineCore(
        engine_id=0,
        incarnation=1,
        info=built.info,
        link=link,  # type: ignore[arg-type]
        scheduler=scheduler,
        runner=built.runner,
        grammars=GrammarStore(lambda: gate, capacity_bytes=1 << 20, wake=link.wake),
    )
    link.say(submit(1, DIGITS))
    link.say(submit(2))
    engine._take_messages()
    link._woken.clear()
    gate.open.set()
    assert link._woken.wait(PATIENCE_S)
    engine._admit_held()
    plan = scheduler.plan(0.0)
    assert plan is not None
    assert [init.request.request_id for init in plan.inits] == [1]


def test_an_abort_reaches_what_waits_for_its_grammar(start: Start, compiler: Compile) -> None:
    gate = Gate(compiler)
    link = start(lambda: gate)
    link.say(Hello(0, 1))
    assert link.load.get(timeout=PATIENCE_S).load.num_waiting == 0
    for request_id in (1, 2):
        link.say(submit(request_id, DIGITS))
    gate.begun.get(timeout=PATIENCE_S)
    link.say(Hello(0, 1))
    assert link.load.get(timeout=PATIENCE_S).load.num_waiting == 2
    link.say(Abort(np.array([1], "<u4").tobytes()))
    link.say(Hello(0, 1))
    assert link.load.get(timeout=PATIENCE_S).load.num_waiting == 1
    gate.open.set()
    assert link.until_finished(1)[0] == {2: "stop"}
    link.say(submit(3))
    assert link.until_finished(1)[0] == {3: "length"}


def test_a_front_end_that_starts_anew_leaves_nothing_behind(start: Start, compiler: Compile) -> None:
    gate = Gate(compiler)
    link = start(lambda: gate)
    link.say(Hello(0, 1))
    link.say(submit(1, DIGITS))
    gate.begun.get(timeout=PATIENCE_S)
    link.say(Hello(0, 2))
    assert link.load.get(timeout=PATIENCE_S).load.num_waiting == 0
    assert link.load.get(timeout=PATIENCE_S).load.num_waiting == 0
    gate.open.set()
    link.say(submit(1, LETTERS))
    assert link.until_finished(1)[0] == {1: "stop"}


def test_requests_that_wait_for_grammars_count_for_the_queue_bound(start: Start, compiler: Compile) -> None:
    gate = Gate(compiler)
    link = start(lambda: gate, max_num_queued_reqs=2)
    for request_id in (1, 2):
        link.say(submit(request_id, DIGITS))
    for request_id, spec in ((3, LETTERS), (4, None)):
        link.say(submit(request_id, spec))
        rejected = link.next()
        assert isinstance(rejected, Rejected)
        assert (rejected.request_id, rejected.code, rejected.num_waiting) == (request_id, "queue_full", 2)
    gate.open.set()
    assert link.until_finished(2)[0] == {1: "stop", 2: "stop"}


def test_a_grammar_that_cannot_be_compiled_is_refused_with_the_reason(
    start: Start, compiler: Compile
) -> None:
    link = start(lambda: compiler)
    link.say(submit(1, GrammarSpec("regex", "(")))
    rejected = link.next()
    assert isinstance(rejected, Rejected)
    assert (rejected.request_id, rejected.code) == (1, "invalid")
    assert rejected.message
    link.say(submit(2, DIGITS))
    assert link.until_finished(1)[0] == {2: "stop"}


@pytest.mark.parametrize("tokenizer_dir", [None, "nowhere"])
def test_without_a_tokenizer_grammars_are_refused_and_nothing_else(
    start: Start, tokenizer_dir: str | None, tmp_path: Path
) -> None:
    directory = None if tokenizer_dir is None else tmp_path / tokenizer_dir
    link = start(lambda: open_compiler(directory, VOCAB_SIZE))
    link.say(submit(1, DIGITS))
    rejected = link.next()
    assert isinstance(rejected, Rejected)
    assert rejected.code == "invalid"
    assert "tokenizer.json" in rejected.message
    link.say(submit(2))
    assert link.until_finished(1)[0] == {2: "length"}


def test_a_failed_step_changes_nothing_in_constrained_output(
    start: Start, built: Built, compiler: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = start(lambda: compiler)
    words = GrammarSpec("regex", "([a-z]{3} ){9}")

    def outputs() -> dict[int, list[int]]:
        for request_id, spec in ((1, words), (2, DIGITS), (3, None)):
            link.say(submit(request_id, spec, max_tokens=30))
        return link.tokens_until_finished(3)

    undisturbed = outputs()
    calls = iter(range(1_000))
    begin = built.runner._grammars.begin
    sample = built.runner._sampler.sample

    def failing(method: Callable, when: int) -> Callable:
        def call(*args: object) -> object:
            result = method(*args)
            if next(calls) == when:
                raise RuntimeError("the step fails")
            return result

        return call

    for name, method, owner in (
        ("begin", begin, built.runner._grammars),
        ("sample", sample, built.runner._sampler),
    ):
        for when in (0, 3, 8):
            calls = iter(range(1_000))
            monkeypatch.setattr(owner, name, failing(method, when))
            assert outputs() == undisturbed
            monkeypatch.setattr(owner, name, method)


def test_a_wake_ends_one_wait() -> None:
    link = FrontEndLink([], "engine:0:1")
    link.wake()
    link.wake()
    link.wait(int(1000 * PATIENCE_S))
    assert not link._poller.poll(0)
    link.close()


# -------------------------------------------------------------------------------------------------------- the store


class Waker:
    def __init__(self) -> None:
        self.calls: SimpleQueue[None] = SimpleQueue()

    def __call__(self) -> None:
        self.calls.put(None)

    def wait(self) -> None:
        self.calls.get(timeout=PATIENCE_S)


def sized(num_bytes: int) -> Compile:
    return lambda spec: Grammar(spec, np.zeros(1, np.int32), num_bytes, Spelling([]))  # type: ignore[arg-type]


def spec_of(number: int) -> GrammarSpec:
    return GrammarSpec("regex", str(number))


def fetch(store: GrammarStore[int], waker: Waker, number: int) -> None:
    if store.want(spec_of(number), number) is None:
        waker.wait()
        assert [key for key, _ in store.settled()] == [number]


def test_the_store_keeps_what_was_used_last_within_its_bound() -> None:
    waker = Waker()
    store: GrammarStore[int] = GrammarStore(lambda: sized(100), capacity_bytes=350, wake=waker)
    for number in (1, 2, 3, 1, 4):
        fetch(store, waker, number)
        assert store.num_bytes <= 350
    assert [store.want(spec_of(number), 0) is not None for number in (1, 3, 4)] == [True] * 3
    assert store.want(spec_of(2), 0) is None
    store.close()


def test_a_grammar_larger_than_the_bound_is_used_and_not_kept() -> None:
    waker = Waker()
    store: GrammarStore[int] = GrammarStore(lambda: sized(100), capacity_bytes=99, wake=waker)
    fetch(store, waker, 1)
    assert store.num_bytes == 0
    assert store.want(spec_of(1), 1) is None
    store.close()


def test_what_nobody_waits_for_is_not_compiled() -> None:
    waker, gate = Waker(), Gate(sized(1))
    store: GrammarStore[int] = GrammarStore(lambda: gate, capacity_bytes=99, wake=waker)
    numbers = range(6)
    for number in numbers:
        assert store.want(spec_of(number), number) is None
    begun = {gate.begun.get(timeout=PATIENCE_S).text for _ in range(2)}  # as many as there are threads
    for number in numbers:
        store.forgo(spec_of(number), number)
    assert store.want(spec_of(5), 7) is None
    gate.open.set()
    found: list[object] = []
    while not found:
        waker.wait()
        found = [key for key, _ in store.settled()]
    assert found == [7]
    assert {spec.text for spec in gate.compiled} <= begun | {"5"}
    store.close()


def test_what_breaks_the_compiler_is_told_and_stops_nothing() -> None:
    def broken(spec: GrammarSpec) -> Grammar:
        raise {"1": GrammarError("wrong"), "2": RuntimeError("broken"), "3": MemoryError()}[spec.text]

    waker = Waker()
    store: GrammarStore[int] = GrammarStore(lambda: broken, capacity_bytes=99, wake=waker)
    for number, said in ((1, "wrong"), (2, "broken"), (3, "compiled"), (1, "wrong")):
        assert store.want(spec_of(number), number) is None
        waker.wait()
        ((key, outcome),) = store.settled()
        assert key == number
        assert isinstance(outcome, str)
        assert said in outcome
    store.close()


@pytest.mark.parametrize("error", [VocabularyError("no vocabulary"), ImportError("no vocabulary")])
def test_a_compiler_that_cannot_be_opened_is_told_to_everybody(error: Exception) -> None:
    def fail() -> Compile:
        raise error

    waker = Waker()
    store: GrammarStore[int] = GrammarStore(fail, capacity_bytes=99, wake=waker)
    for number in (1, 2):
        assert store.want(spec_of(number), number) is None
        waker.wait()
        ((_, outcome),) = store.settled()
        assert "no vocabulary" in str(outcome)
    store.close()


def test_an_idle_engine_loads_what_the_first_grammar_will_take(start: Start, compiler: Compile) -> None:
    opened = threading.Event()

    def open_it() -> Compile:
        opened.set()
        return compiler

    start(open_it)
    assert opened.wait(PATIENCE_S)
