"""Drafts change how many steps an answer takes and nothing else: where it ends, what it says, how it is scored."""

from __future__ import annotations

import contextlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jsonschema
import msgspec
import numpy as np
import pytest
import torch
from engine_runs import Served, serve
from grammar_languages import LANGUAGES
from late_device import LateDevice, gathered_runner
from oracle_drafter import Clockwork, oracle_speculation
from penstock.engine.batch import DeviceSlots
from penstock.engine.build import Built, create_runner
from penstock.engine.drafters import open_speculation
from penstock.engine.grammar.store import Compile, open_compiler
from penstock.engine.speculation import Speculation
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import (
    EngineConfig,
    GrammarSpec,
    RepetitionDetection,
    SamplingParams,
    SpeculativeConfig,
)
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler
from penstock.server.parsing.events import CallArguments, merged
from penstock.server.parsing.interface import ToolSchema
from penstock.server.parsing.tools.registry import find
from tiny_models import VOCAB_SIZE, make_checkpoint
from tokenizers import Tokenizer

EOS = 2
TOKENS = 60
DRAFTS = 6
TEXT = torch.randint(3, 259, (70,), generator=torch.Generator().manual_seed(8)).tolist()
FEW = [20, 41, 77]  # so few tokens to choose from that any answer repeats itself
NARROW: dict[str, Any] = {"max_tokens": TOKENS, "allowed_token_ids": FEW, "temperature": 1.0}

REQUESTS = {
    "greedy": SamplingParams(max_tokens=TOKENS, temperature=0.0),
    "narrow": SamplingParams(seed=1, **NARROW),
    "truncated": SamplingParams(seed=2, **{**NARROW, "temperature": 0.8}, top_k=2, top_p=0.95, min_p=0.05),
    "penalties": SamplingParams(seed=3, **NARROW, presence_penalty=0.4, repetition_penalty=1.2),
    "frequency": SamplingParams(seed=4, **NARROW, frequency_penalty=0.3),
    "bias": SamplingParams(seed=5, max_tokens=TOKENS, logit_bias=dict.fromkeys(FEW, 20.0)),
    "bad words": SamplingParams(seed=6, **NARROW, bad_words=[[20, 20], [41, 77, 41]]),
    "min tokens": SamplingParams(seed=7, **NARROW, min_tokens=30, stop_token_ids=[20]),
    "scored": SamplingParams(seed=8, **NARROW, logprobs=3),
    "scored greedily": SamplingParams(max_tokens=TOKENS, temperature=0.0, logprobs=0, prompt_logprobs=1),
}
PROMPTS = [TEXT[: 20 + 4 * index] for index in range(len(REQUESTS))]  # each a prefix of the next
METHODS = {
    "adaptive": SpeculativeConfig(method="ngram", num_speculative_tokens=DRAFTS, prompt_lookup_min=1),
    "fixed": SpeculativeConfig(
        method="ngram", num_speculative_tokens=DRAFTS, prompt_lookup_min=1, adaptive=False
    ),
    "shared": SpeculativeConfig(
        method="ngram", num_speculative_tokens=DRAFTS, prompt_lookup_min=2, shared_pool=4096
    ),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    make_checkpoint("qwen3", path)
    return path


@pytest.fixture(scope="module")
def compiler(path: Path) -> Compile:
    return open_compiler(path, VOCAB_SIZE)


@pytest.fixture(scope="module")
def text_of(path: Path) -> Callable[[list[int]], str]:
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.fixture(scope="module")
def plain(path: Path) -> Iterator[Built]:
    """Without drafts, but with room for their masks."""
    built = create_runner(
        EngineConfig(
            model_dir=str(path),
            device="cpu",
            num_threads=1,
            max_model_len=480,
            page_size=4,
            num_pages=2000,
            max_num_seqs=24,
            max_num_batched_tokens=1024,
            speculative=METHODS["fixed"],
        )
    )
    with patch.object(built.runner, "_speculation", None):
        yield replace(built, scheduler_config=replace(built.scheduler_config, max_draft_tokens=0))
    built.runner.close()


@pytest.fixture(scope="module")
def expected(plain: Built) -> Served:
    return serve(plain, PROMPTS, list(REQUESTS.values()))


@contextmanager
def drafting(plain: Built, how: SpeculativeConfig | Speculation, **scheduler: Any) -> Iterator[Built]:
    """The same engine with drafts, whose lengths are chosen the same way in every run."""
    runner, made = plain.runner, how
    if isinstance(made, SpeculativeConfig):
        opened = open_speculation(made, runner.num_slots)
        assert opened is not None
        made = opened(DeviceSlots(runner._token_buffer, runner._page_tables))
    made._cost = Clockwork()  # type: ignore[assignment]
    most = how.num_speculative_tokens if isinstance(how, SpeculativeConfig) else DRAFTS
    config = replace(plain.scheduler_config, max_draft_tokens=most, **scheduler)
    with patch.object(runner, "_speculation", made):
        yield replace(plain, scheduler_config=config)


def endings(served: Served) -> list[tuple[list[int], str | None]]:
    reasons = [request.finish_reason for request in served.requests]
    return list(zip(served.outputs, reasons, strict=True))


def same(served: Served, reference: Served) -> None:
    """The same tokens, ends and scores."""
    assert endings(served) == endings(reference)
    for mine, theirs in zip(served.logprobs, reference.logprobs, strict=True):
        for is_prompt in (True, False):
            ours, others = ([row for row in rows if row.is_prompt == is_prompt] for rows in (mine, theirs))
            assert bool(ours) == bool(others)
            for name in ("token_ids", "ranks", "top_ids", "logprobs", "top_logprobs") if ours else ():
                np.testing.assert_array_equal(
                    np.concatenate([getattr(row, name) for row in ours]),
                    np.concatenate([getattr(row, name) for row in others]),
                    err_msg=name,
                )


# -------------------------------------------------------------------------------------------------- the same answers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arrive_every", [0, 7])
def test_answers_that_repeat_themselves_are_the_same_from_fewer_rows(
    plain: Built, expected: Served, method: str, arrive_every: int
) -> None:
    with drafting(plain, METHODS[method]) as built:
        served = serve(built, PROMPTS, list(REQUESTS.values()), arrive_every=arrive_every)
    same(served, expected)
    assert served.load.num_accepted_tokens > 100
    assert served.load.num_accepted_tokens < served.load.num_draft_tokens
    assert 0 < served.load.verify_steps < len(served.plans)
    assert served.load.draft_seconds > 0
    assert 0 < served.load.draft_length <= DRAFTS
    if not arrive_every:
        rows, without = (sum(plan.slots.size for plan in each.plans) for each in (served, expected))
        assert rows < without - served.load.num_accepted_tokens / 2


@pytest.mark.parametrize("method", ["adaptive", "fixed"])
@pytest.mark.parametrize("prediction", ["right", "half right", "wrong", "with an edit"])
def test_predictions_change_no_answer(plain: Built, expected: Served, method: str, prediction: str) -> None:
    predictions = [predicted(output, prediction) for output in expected.outputs]
    with drafting(plain, METHODS[method]) as built:
        served = serve(built, PROMPTS, list(REQUESTS.values()), predictions=predictions)
    same(served, expected)
    for request, output in zip(served.requests, served.outputs, strict=True):
        accepted, rejected = request.predicted
        assert accepted <= len(output)
        if prediction == "right":
            assert (accepted, rejected) == (len(output), 0)


def predicted(output: list[int], how: str) -> list[int]:
    half = len(output) // 2
    return {
        "right": output,
        "half right": output[:half] + [300] * half,
        "wrong": [(token + 1) % VOCAB_SIZE for token in output],
        "with an edit": [*output[:half], 300, 301, *output[half + 1 :]],
    }[how]


def test_a_right_prediction_takes_a_step_for_each_draft(plain: Built, expected: Served) -> None:
    with drafting(plain, METHODS["fixed"]) as built:
        served = serve(
            built, PROMPTS[:1], REQUESTS["greedy"], predictions=expected.outputs[:1], steps_in_flight=1
        )
    assert len(served.plans) == 1 + -(-(TOKENS - 1) // (DRAFTS + 1))
    assert served.load.num_accepted_tokens == served.load.num_draft_tokens


@pytest.mark.parametrize("method", ["adaptive", "fixed"])
def test_preempted_requests_go_on_with_their_drafts_and_their_counts(
    plain: Built, expected: Served, method: str
) -> None:
    tight: dict[str, Any] = {"groups": (KVGroup("full", num_pages=70),), "max_num_batched_tokens": 64}
    for how in ("right", "half right"):
        predictions = [predicted(output, how) for output in expected.outputs]
        with drafting(plain, METHODS[method], **tight) as built:
            served = serve(built, PROMPTS, list(REQUESTS.values()), predictions=predictions)
        same(served, expected)
        assert served.load.num_preemptions > 0
        assert served.load.num_accepted_tokens > 100
        for request, output in zip(served.requests, served.outputs, strict=True):
            if how == "right":
                assert request.predicted == (len(output), 0)
            else:
                assert len(output) // 2 <= request.predicted[0] < len(output)


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_prediction_may_come_when_nobody_has_drafted_for_long(plain: Built, steps_in_flight: int) -> None:
    """The steps before are not settled yet then."""
    how = [SamplingParams(max_tokens=TOKENS, temperature=1.5, seed=seed) for seed in range(4)]
    reference = serve(plain, PROMPTS[:4], how)
    predictions = [[], [], *reference.outputs[2:]]
    for every in (11, 13, 14, 17):
        with drafting(plain, METHODS["fixed"]) as built:
            served = serve(
                built,
                PROMPTS[:4],
                how,
                steps_in_flight=steps_in_flight,
                arrive_every=every,
                predictions=predictions,
            )
        assert endings(served) == endings(reference)
        assert [request.predicted for request in served.requests] == [
            (0, 0),
            (0, 0),
            (TOKENS, 0),
            (TOKENS, 0),
        ]


def test_resumed_requests_count_only_what_came_since(plain: Built, expected: Served) -> None:
    already = 25
    prompts = [p + o[:already] for p, o in zip(PROMPTS, expected.outputs, strict=True)]
    with drafting(plain, METHODS["fixed"]) as built:
        served = serve(
            built,
            prompts,
            list(REQUESTS.values()),
            num_prompt_tokens=[len(prompt) for prompt in PROMPTS],
            predictions=expected.outputs,
        )
    assert endings(served) == endings(expected)
    for request, output in zip(served.requests, served.outputs, strict=True):
        assert request.predicted == (len(output) - min(already, len(output)), 0)


def test_seeds_give_the_same_whatever_the_company(plain: Built, expected: Served) -> None:
    with drafting(plain, METHODS["fixed"]) as built:
        for index, how in enumerate(REQUESTS.values()):
            alone = serve(built, [PROMPTS[index]], how, steps_in_flight=1)
            assert alone.outputs[0] == expected.outputs[index]


# ------------------------------------------------------------------------------------------- ends within accepted runs


def test_stop_tokens_and_lengths_cut_an_accepted_run_at_every_place(plain: Built, expected: Served) -> None:
    output = expected.outputs[0]
    greedy = replace_sampling(REQUESTS["greedy"], logprobs=0)
    ends = [replace_sampling(greedy, max_tokens=count) for count in range(1, 20)]
    ends += [replace_sampling(greedy, stop_token_ids=[token]) for token in output[:20]]
    ends += [
        replace_sampling(greedy, stop_token_ids=sorted(set(output)), min_tokens=count)
        for count in range(1, 20)
    ]
    reference = serve(plain, PROMPTS[:1] * len(ends), ends)
    # What min_tokens forbids changes the answer, so each request expects its own.
    with drafting(plain, METHODS["fixed"]) as built:
        served = serve(built, PROMPTS[:1] * len(ends), ends, predictions=reference.outputs)
        longer = serve(built, PROMPTS[:1] * len(ends), ends, predictions=[output] * len(ends))
    for each in (served, longer):
        same(each, reference)
        assert each.load.num_accepted_tokens > len(ends)
    reasons = [request.finish_reason for request in served.requests]
    assert reasons[:19] == ["length"] * 19
    assert reasons[19:39] == ["stop"] * 20


def replace_sampling(sampling: SamplingParams, **changes: Any) -> SamplingParams:
    return msgspec.structs.replace(sampling, **changes)


def test_repetition_ends_an_accepted_run_where_it_does_without(plain: Built) -> None:
    watch = RepetitionDetection(max_pattern_size=6, min_pattern_size=1, min_count=3)
    how = [
        SamplingParams(**{**NARROW, "max_tokens": 200}, seed=seed, repetition_detection=watch)
        for seed in range(6)
    ]
    reference = serve(plain, [PROMPTS[0]] * 6, how)
    assert {request.finish_reason for request in reference.requests} == {"repetition"}
    with drafting(plain, METHODS["fixed"]) as built:
        served = serve(built, [PROMPTS[0]] * 6, how, predictions=reference.outputs)
    assert endings(served) == endings(reference)
    assert served.load.num_accepted_tokens > 0


# ----------------------------------------------------------------------------------------------------------- grammars


class Mute:
    """A drafter that never drafts anything."""

    num_sources = 1

    def start(self, slot: int, tokens: object, prediction: object = None, **_: object) -> None: ...
    def extend(self, slots: object, counts: object, tokens: object, verified: object = None) -> None: ...
    def stop(self, slot: int) -> None: ...

    def propose(self, slots: np.ndarray, max_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._num_rows = len(slots)
        return np.zeros(len(slots), np.int32), np.zeros(0, np.int32)

    def sources(self) -> np.ndarray:
        return np.zeros(self._num_rows, np.int32)

    def predicted(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(slots), np.int32), np.zeros(len(slots), np.int32)


def constrained(language: str, **changes: Any) -> SamplingParams:
    settings = {"max_tokens": 120, "temperature": 0.0, "stop_token_ids": [EOS], **changes}
    return SamplingParams(grammar=LANGUAGES[language][0], **settings)


SENTENCES = [
    constrained(language, seed=seed, temperature=temperature, stop_token_ids=stop)
    for language in LANGUAGES
    if language != "schema"  # as long as its white space
    for seed, (temperature, stop) in enumerate([(0.0, [EOS]), (1.0, [EOS]), (1.0, [])])
]


@pytest.fixture(scope="module")
def sentences(plain: Built, compiler: Compile) -> Served:
    return serve(plain, [TEXT[:20]] * len(SENTENCES), SENTENCES, compile_grammar=compiler)


@pytest.mark.parametrize("method", ["adaptive", "fixed"])
@pytest.mark.parametrize("prediction", ["none", "right", "half right", "wrong"])
def test_constrained_answers_are_the_same(
    plain: Built,
    compiler: Compile,
    text_of: Callable[[list[int]], str],
    sentences: Served,
    method: str,
    prediction: str,
) -> None:
    predictions = [
        [] if prediction == "none" else predicted(output, prediction) for output in sentences.outputs
    ]
    with drafting(plain, METHODS[method]) as built:
        served = serve(
            built,
            [TEXT[:20]] * len(SENTENCES),
            SENTENCES,
            compile_grammar=compiler,
            predictions=predictions,
        )
    assert endings(served) == endings(sentences)
    assert served.load.num_accepted_tokens > 50
    languages = [name for name in LANGUAGES if name != "schema" for _ in range(3)]
    for language, request, output in zip(languages, served.requests, served.outputs, strict=True):
        if request.finish_reason == "stop":
            LANGUAGES[language][1](text_of(output))


def test_what_a_grammar_forces_is_drafted_without_a_drafter(plain: Built, compiler: Compile) -> None:
    forced = GrammarSpec(
        "regex", "a very long text that is given[a-z]{2} and another of them, also given[0-9]"
    )
    how = [
        SamplingParams(max_tokens=120, temperature=1.0, seed=seed, stop_token_ids=stop, grammar=forced)
        for seed in range(2)
        for stop in ([EOS], [])
    ]
    reference = serve(plain, PROMPTS[:4], how, compile_grammar=compiler)
    with drafting(plain, Speculation(plain.runner.num_slots, Mute(), max_draft_tokens=DRAFTS)) as built:
        served = serve(built, PROMPTS[:4], how, compile_grammar=compiler)
    assert endings(served) == endings(reference)
    assert {reason for _, reason in endings(served)} == {"stop"}
    # The tokenizer's tokens are bytes, so all that is forced is spelt as it was drafted.
    assert served.load.num_accepted_tokens == served.load.num_draft_tokens > 4 * 50
    assert len(served.plans) < len(reference.plans) / 3


@pytest.mark.parametrize("stop", [[EOS], []], ids=["with a stop id", "without"])
@pytest.mark.parametrize("max_tokens", [100, 7])
def test_a_grammar_that_is_complete_within_a_run_ends_it_there(
    plain: Built, compiler: Compile, stop: list[int], max_tokens: int
) -> None:
    """Every prefix of the draft is tried, so the end falls on each place of a run."""
    grammar = GrammarSpec("regex", "[a-z]{9}")
    how = SamplingParams(
        max_tokens=max_tokens, temperature=1.0, seed=3, stop_token_ids=stop, grammar=grammar, logprobs=0
    )
    reference = serve(plain, PROMPTS[:1], how, compile_grammar=compiler)
    output = reference.outputs[0]
    predictions = [output[:count] + [67] * 20 for count in range(len(output) + 1)]
    with drafting(plain, METHODS["fixed"]) as built:
        served = serve(
            built, PROMPTS[:1] * len(predictions), how, compile_grammar=compiler, predictions=predictions
        )
    assert endings(served) == endings(reference) * len(predictions)
    for rows in served.logprobs:
        assert [token for row in rows for token in row.token_ids.tolist()] == output
    assert served.load.num_accepted_tokens > 0


@pytest.mark.parametrize("number", [1, 300], ids=["special", "without text"])
def test_a_draft_of_a_token_that_is_no_text_is_dropped_without_a_word(
    plain: Built, compiler: Compile, sentences: Served, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    """For ids without text that it is shown xgrammar writes a line each, and a client may fill a prompt with them."""
    predictions = [[*output[:5], number, *output[5:]] for output in sentences.outputs]
    with drafting(plain, METHODS["fixed"]) as built:
        prompts = [TEXT[:20]] * len(SENTENCES)
        served = serve(built, prompts, SENTENCES, compile_grammar=compiler, predictions=predictions)
    assert endings(served) == endings(sentences)
    assert "special token" not in capfd.readouterr().err


TOOL = ToolSchema(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
FORMATS = (
    "hermes",
    "llama3_json",
    "pythonic",
    "mistral",
    "qwen3_coder",
    "deepseek_v3",
    "glm45",
    "minimax_m2",
)


def thinks_and_calls(name: str) -> GrammarSpec:
    """Thinking of any length up to a bound, then one call in this format, its arguments by the schema."""
    known = find(name)
    assert known is not None
    call = known.tag([TOOL], at_least_one=True, at_most_one=True)
    thinking = [
        {"type": "regex", "pattern": "[a-z]{2,25}"},
        {"type": "const_string", "value": "</think>\n\n"},
    ]
    tag = {"type": "sequence", "elements": [*thinking, call]}
    return GrammarSpec("structural_tag", json.dumps({"type": "structural_tag", "format": tag}))


def test_the_end_of_thinking_and_calls_within_a_run_are_read_as_without_drafts(
    plain: Built, compiler: Compile, text_of: Callable[[list[int]], str]
) -> None:
    how = [
        SamplingParams(
            max_tokens=300, temperature=1.0, seed=seed, stop_token_ids=[EOS], grammar=thinks_and_calls(name)
        )
        for name in FORMATS
        for seed in range(2)
    ]
    prompts = [TEXT[:20]] * len(how)
    reference = serve(plain, prompts, how, compile_grammar=compiler)
    for prediction in (None, "right", "with an edit"):
        predictions = [predicted(output, prediction) if prediction else [] for output in reference.outputs]
        with drafting(plain, METHODS["fixed"]) as built:
            served = serve(built, prompts, how, compile_grammar=compiler, predictions=predictions)
        assert endings(served) == endings(reference)
        assert served.load.num_accepted_tokens > 20 * len(FORMATS)
    whole = 0
    for row, (output, reason) in enumerate(endings(reference)):
        thought, end, call = text_of(output).partition("</think>\n\n")
        assert re.fullmatch("[a-z]{2,25}", thought)
        if reason == "stop":  # not a number without end
            parser = find(FORMATS[row // 2]).parser([TOOL])  # type: ignore[union-attr]
            events = merged([*parser.push(call), *parser.finish()])
            (arguments,) = (event.text for event in events if isinstance(event, CallArguments))
            jsonschema.validate(json.loads(arguments), TOOL.parameters)
            whole += bool(end)
    assert whole > len(FORMATS)


def test_preempted_and_resumed_grammars_go_on_where_they_were(
    plain: Built, compiler: Compile, sentences: Served
) -> None:
    tight: dict[str, Any] = {"groups": (KVGroup("full", num_pages=70),), "max_num_batched_tokens": 64}
    already = 9
    prompts = [TEXT[:20] + output[:already] for output in sentences.outputs]
    with drafting(plain, METHODS["fixed"], **tight) as built:
        served = serve(
            built,
            prompts,
            SENTENCES,
            num_prompt_tokens=[20] * len(prompts),
            compile_grammar=compiler,
            predictions=[predicted(output, "with an edit") for output in sentences.outputs],
        )
    unfinished = [i for i, output in enumerate(sentences.outputs) if len(output) > already]
    assert len(unfinished) > 10
    assert [endings(served)[i] for i in unfinished] == [endings(sentences)[i] for i in unfinished]
    assert served.load.num_preemptions > 0


# --------------------------------------------------------------------------------- late devices, failures, cancellation


@pytest.mark.parametrize("method", ["adaptive", "fixed"])
def test_a_late_device_gives_the_same(path: Path, compiler: Compile, method: str) -> None:
    tight = {"num_pages": 60, "max_num_seqs": 12, "max_num_batched_tokens": 96, "max_model_len": 160}
    each = [replace_sampling(how, max_tokens=24) for how in REQUESTS.values()]
    each += [constrained("words", max_tokens=24), constrained("regex", max_tokens=24)]
    prompts = [*PROMPTS, TEXT[:11], TEXT[:13]]
    with gathered_runner(path, None, **tight) as at_once:
        reference = serve(at_once, prompts, each, compile_grammar=compiler)
    with gathered_runner(path, LateDevice(), **tight) as late, drafting(late, METHODS[method]) as built:
        served = serve(built, prompts, each, compile_grammar=compiler)
    assert endings(served) == endings(reference)
    assert served.load.num_accepted_tokens > 10


def test_a_step_that_fails_loses_no_draft_and_no_token(plain: Built, expected: Served) -> None:
    texts = [p + o for p, o in zip(PROMPTS, expected.outputs, strict=True)]
    oracle = oracle_speculation(
        plain.runner.num_slots, texts, max_draft_tokens=DRAFTS, wrong_every=4, vocab_size=VOCAB_SIZE
    )
    forward, calls = plain.runner._forward, 0

    def fails_sometimes(batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls % 20 == 0:
            raise RuntimeError("a step that was to fail")
        return forward(batch)

    with drafting(plain, oracle) as built, patch.object(plain.runner, "_forward", fails_sometimes):
        requests, failures = run_with_failures(built)
    assert failures > 1
    for request, output in zip(requests, expected.outputs, strict=True):
        if request.finish_reason != "error":  # named by several failed steps
            assert request.tokens[request.num_prompt_tokens :].tolist() == output
    assert sum(request.finish_reason != "error" for request in requests) > 3


def run_with_failures(built: Built) -> tuple[list[Request], int]:
    """All requests, as the engine runs them; and how many steps failed."""
    scheduler = Scheduler(built.scheduler_config)
    requests = [
        Request(
            key=i, tokens=np.array(prompt, np.int32), num_prompt_tokens=len(prompt), sampling=how, arrival=i
        )
        for i, (prompt, how) in enumerate(zip(PROMPTS, REQUESTS.values(), strict=True))
    ]
    waiting, in_flight, failures, step = deque(requests), deque[Any](), 0, 0
    while waiting or in_flight or scheduler.has_work():
        step += 1
        if waiting and step % 3 == 1:
            scheduler.add(waiting.popleft())
        plan = scheduler.plan(float(step))
        if plan is not None:
            in_flight.append((plan, built.runner.launch(plan)))
        if len(in_flight) == 2 or (in_flight and plan is None):
            oldest, handle = in_flight.popleft()
            try:
                result = handle.result()
            except RuntimeError:
                failures += 1
                for _, other in in_flight:
                    with contextlib.suppress(Exception):
                        other.result()
                in_flight.clear()
                scheduler.fail(oldest)
            else:
                scheduler.commit(oldest, result, float(step))
            scheduler.check()
    return requests, failures


def test_aborted_requests_disturb_nobody(plain: Built, expected: Served) -> None:
    rng = np.random.default_rng(5)
    with drafting(plain, METHODS["fixed"]) as built:
        scheduler = Scheduler(built.scheduler_config)
        requests = [
            Request(
                key=i,
                tokens=np.array(PROMPTS[i % len(PROMPTS)], np.int32),
                num_prompt_tokens=len(PROMPTS[i % len(PROMPTS)]),
                sampling=list(REQUESTS.values())[i % len(PROMPTS)],
                prediction=np.array(expected.outputs[i % len(PROMPTS)], np.int32),
                arrival=i,
            )
            for i in range(60)
        ]
        waiting, in_flight = deque(requests), deque[Any]()
        running: list[Request] = []
        while waiting or in_flight or scheduler.has_work():
            if waiting:
                running.append(waiting.popleft())
                scheduler.add(running[-1])
            if running and rng.random() < 0.5:
                scheduler.abort(running.pop(int(rng.integers(len(running)))))
            plan = scheduler.plan(0.0)
            if plan is not None:
                in_flight.append((plan, built.runner.launch(plan)))
            if len(in_flight) == 2 or (in_flight and plan is None):
                oldest, handle = in_flight.popleft()
                outcome = scheduler.commit(oldest, handle.result(), 0.0)
                running = [request for request in running if request not in outcome.finished]
                scheduler.check()
    finished = [request for request in requests if request.finish_reason in ("stop", "length")]
    assert 10 < len(finished) < 60
    for request in finished:
        output = expected.outputs[request.key % len(PROMPTS)]  # type: ignore[operator]
        assert request.tokens[request.num_prompt_tokens :].tolist() == output
        assert request.predicted == (len(output), 0)
