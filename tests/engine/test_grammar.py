"""Constrained output is always in its language, and is what a slow reference gives, however requests are run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xgrammar
from engine_runs import Served, serve
from grammar_languages import LANGUAGES
from penstock.engine.build import Built, create_runner
from penstock.engine.grammar.store import Compile, open_compiler
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import EngineConfig, GrammarSpec, SamplingParams
from tiny_models import VOCAB_SIZE, make_checkpoint
from tokenizers import Tokenizer
from transformers import PreTrainedModel

EOS = 2
SPECIAL = [0, 1, 2]
TEXT = torch.randint(3, 259, (70,), generator=torch.Generator().manual_seed(8)).tolist()


def constrained(language: str, **changes: object) -> SamplingParams:
    settings = {"max_tokens": 400, "temperature": 0.0, "stop_token_ids": [EOS], **changes}
    return SamplingParams(grammar=LANGUAGES[language][0], **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen3")


@pytest.fixture(scope="module")
def reference_model(path: Path) -> PreTrainedModel:
    return make_checkpoint("qwen3", path)


@pytest.fixture(scope="module")
def built(path: Path, reference_model: PreTrainedModel) -> Iterator[Built]:
    made = create_runner(
        EngineConfig(
            model_dir=str(path),
            device="cpu",
            num_threads=1,
            max_model_len=480,
            page_size=4,
            num_pages=2000,
            max_num_seqs=24,
            max_num_batched_tokens=1024,
        )
    )
    yield made
    made.runner.close()


@pytest.fixture(scope="module")
def compiler(path: Path, reference_model: PreTrainedModel) -> Compile:
    return open_compiler(path, VOCAB_SIZE)


@pytest.fixture(scope="module")
def text_of(path: Path, reference_model: PreTrainedModel) -> Callable[[list[int]], str]:
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)


def configured(built: Built, **changes: object) -> Built:
    return replace(built, scheduler_config=replace(built.scheduler_config, **changes))  # type: ignore[arg-type]


def reference(
    model: PreTrainedModel, path: Path, compiler: Compile, prompt: list[int], language: str
) -> list[int]:
    """Greedy: the whole prefix through transformers and through a new matcher for every token."""
    grammar = compiler(LANGUAGES[language][0]).compiled
    output: list[int] = []
    while not output or output[-1] != EOS:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + output])).logits[0, -1]
        matcher = xgrammar.GrammarMatcher(grammar, override_stop_tokens=[EOS])
        bits = xgrammar.allocate_token_bitmask(1, VOCAB_SIZE)
        for token in output:
            matcher.fill_next_token_bitmask(bits)  # without it a budget of tokens is not counted
            assert matcher.accept_token(token)
        matcher.fill_next_token_bitmask(bits)
        allowed = np.unpackbits(bits.numpy().view(np.uint8), bitorder="little")[:VOCAB_SIZE].astype(bool)
        allowed[SPECIAL] = False
        allowed[EOS] = matcher.is_completed()
        output.append(int(logits.masked_fill(torch.from_numpy(~allowed), float("-inf")).argmax()))
    return output


@pytest.fixture(scope="module")
def greedy(
    path: Path, reference_model: PreTrainedModel, compiler: Compile
) -> list[tuple[list[int], str, list[int]]]:
    """(prompt, language, output) of the reference; the prompts share beginnings."""
    return [
        (
            TEXT[: 20 + 5 * index],
            name,
            reference(reference_model, path, compiler, TEXT[: 20 + 5 * index], name),
        )
        for index, name in enumerate(LANGUAGES)
        if name != "schema"  # as long as its white space
    ]


def longest(greedy: list[tuple[list[int], str, list[int]]]) -> int:
    return max(len(output) for _, _, output in greedy)


# -------------------------------------------------------------------------------------------------- in the language


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1.0},
        {"temperature": 2.0, "top_k": 40, "top_p": 0.95, "min_p": 0.001},
        {"temperature": 1.0, "frequency_penalty": 1.0, "logit_bias": {65 + 3: 5.0, EOS: 20.0}},
        {"temperature": 1.0, "min_tokens": 150, "bad_words": [[20], [40, 41]]},
        {"temperature": 1.0, "allowed_token_ids": list(range(60, 100)), "min_tokens": 3},
    ],
    ids=["plain", "truncated", "penalties", "min tokens and bad words", "allowed tokens"],
)
def test_output_is_always_in_the_language(
    built: Built, compiler: Compile, text_of: Callable, language: str, how: dict
) -> None:
    each = [constrained(language, seed=seed, **how) for seed in range(12)]
    served = serve(built, [TEXT[:20]] * len(each), each, compile_grammar=compiler)
    ended = 0
    for request, output in zip(served.requests, served.outputs, strict=True):
        assert request.finish_reason == ("stop" if output[-1] == EOS else "length")
        if request.finish_reason == "stop":
            LANGUAGES[language][1](text_of(output))
            assert not set(output[:-1]) & set(SPECIAL)
            ended += 1
    assert ended > len(each) // 2
    assert len({tuple(output) for output in served.outputs}) > 1 or "allowed_token_ids" in how


def test_what_is_cut_at_max_tokens_is_the_beginning_of_a_sentence(built: Built, compiler: Compile) -> None:
    served = serve(built, [TEXT], constrained("schema", max_tokens=9), compile_grammar=compiler)
    assert served.requests[0].finish_reason == "length"
    matcher = xgrammar.GrammarMatcher(compiler(LANGUAGES["schema"][0]).compiled, override_stop_tokens=[EOS])
    assert len(served.outputs[0]) == 9
    assert all(matcher.accept_token(token) for token in served.outputs[0])


def test_a_request_without_stop_ids_ends_where_its_grammar_ends(
    built: Built, compiler: Compile, text_of: Callable
) -> None:
    served = serve(
        built,
        [TEXT, TEXT[:30]],
        constrained("regex", stop_token_ids=[], logprobs=1),
        compile_grammar=compiler,
    )
    for request, output in zip(served.requests, served.outputs, strict=True):
        assert request.finish_reason == "stop"
        LANGUAGES["regex"][1](text_of(output))
        assert len(output) == 10


def test_special_tokens_come_only_where_a_structural_tag_names_them(
    built: Built, compiler: Compile, text_of: Callable
) -> None:
    tag = {
        "type": "sequence",
        "elements": [
            {"type": "const_string", "value": "<|im_start|>"},
            {"type": "regex", "pattern": "[a-z]{2}"},
            {"type": "token", "token": 1},
        ],
    }
    spec = GrammarSpec("structural_tag", json.dumps({"type": "structural_tag", "format": tag}))
    how = SamplingParams(
        max_tokens=30, temperature=0.0, stop_token_ids=[EOS], logit_bias={0: 50.0, 1: 50.0}, grammar=spec
    )
    (output,) = serve(built, [TEXT], how, compile_grammar=compiler).outputs
    assert [output[0], *output[3:]] == [1, 1, EOS]
    anything = GrammarSpec("regex", "(<|.|>){12}")
    how = SamplingParams(
        max_tokens=30, temperature=0.0, stop_token_ids=[EOS], logit_bias={0: 50.0, 1: 50.0}, grammar=anything
    )
    (output,) = serve(built, [TEXT], how, compile_grammar=compiler).outputs
    assert len(text_of(output)) == 12


def test_a_resumed_output_outside_of_the_language_ends_with_an_error_and_harms_nobody(
    built: Built, compiler: Compile
) -> None:
    alone = serve(built, [TEXT], constrained("words"), compile_grammar=compiler)
    both = serve(
        built,
        [[*TEXT[:30], 200, 201], TEXT],
        [constrained("regex"), constrained("words")],
        num_prompt_tokens=[30, len(TEXT)],
        compile_grammar=compiler,
    )
    assert both.requests[0].finish_reason == "error"
    assert both.outputs[0] == [200, 201]
    assert both.outputs[1] == alone.outputs[0]


# ------------------------------------------------------------------------------------------------- as the reference


@pytest.mark.parametrize("depth", [1, 2], ids=["one step at a time", "one step ahead"])
@pytest.mark.parametrize(
    ("changes", "every"),
    [
        ({}, 0),
        ({"max_num_batched_tokens": 11, "max_num_seqs": 4}, 0),
        ({"enable_prefix_caching": True}, 7),
        ({"groups": (KVGroup("full", num_pages=42),)}, 0),
        ({"groups": (KVGroup("full", num_pages=42),), "max_num_batched_tokens": 40, "max_num_seqs": 6}, 0),
    ],
    ids=["batch", "chunks", "cache", "preemption", "preemption and chunks"],
)
def test_greedy_output_is_that_of_a_slow_reference(
    built: Built,
    compiler: Compile,
    greedy: list[tuple[list[int], str, list[int]]],
    changes: dict,
    every: int,
    depth: int,
) -> None:
    served = serve(
        configured(built, **{"enable_prefix_caching": False, **changes}),
        [prompt for prompt, _, _ in greedy],
        [constrained(language, max_tokens=longest(greedy)) for _, language, _ in greedy],
        steps_in_flight=depth,
        arrive_every=every,
        compile_grammar=compiler,
    )
    assert served.outputs == [output for _, _, output in greedy]
    if "groups" in changes:
        assert served.load.num_preemptions > 0
    if changes.get("enable_prefix_caching"):
        assert served.load.prefix_cache_hits > 0


@pytest.mark.parametrize("known", [1, 5, 9])
def test_resubmission_with_the_output_so_far_goes_on_as_if_nothing_had_happened(
    built: Built, compiler: Compile, greedy: list[tuple[list[int], str, list[int]]], known: int
) -> None:
    served = serve(
        built,
        [prompt + output[:known] for prompt, _, output in greedy],
        [constrained(language, max_tokens=longest(greedy)) for _, language, _ in greedy],
        num_prompt_tokens=[len(prompt) for prompt, _, _ in greedy],
        compile_grammar=compiler,
    )
    assert served.outputs == [output for _, _, output in greedy]


def test_seeds_reproduce_whatever_the_company(built: Built, compiler: Compile) -> None:
    each = [
        constrained(name, max_tokens=120, temperature=1.2, seed=5 + n, top_p=0.95)
        for n, name in enumerate(LANGUAGES)
    ]
    prompts = [TEXT[: 20 + 3 * n] for n in range(len(each))]
    together = serve(built, prompts, each, compile_grammar=compiler)
    crowded = serve(
        configured(built, groups=(KVGroup("full", num_pages=42),)), prompts, each, compile_grammar=compiler
    )
    assert crowded.load.num_preemptions > 0
    assert crowded.outputs == together.outputs
    for prompt, how, output in zip(prompts, each, together.outputs, strict=True):
        assert serve(built, [prompt], how, steps_in_flight=1, compile_grammar=compiler).outputs == [output]


def test_unconstrained_neighbours_give_the_same_bits(built: Built, compiler: Compile) -> None:
    free = [
        SamplingParams(max_tokens=30, temperature=0.0, logprobs=3),
        SamplingParams(max_tokens=30, temperature=1.0, seed=3, logprobs=0, top_k=20),
        SamplingParams(max_tokens=30, temperature=0.0),
    ]
    prompts = [TEXT[:20], TEXT[:33], TEXT[:47]]
    without = serve(built, prompts, free, compile_grammar=compiler)
    mixed = [how for one in free for how in (one, constrained("schema"))]
    beside = serve(
        built, [p for prompt in prompts for p in (prompt, TEXT[:25])], mixed, compile_grammar=compiler
    )
    assert beside.outputs[::2] == without.outputs
    for theirs, ours in zip(without.logprobs, beside.logprobs[::2], strict=True):
        for one, other in zip(theirs, ours, strict=True):
            np.testing.assert_array_equal(one.logprobs, other.logprobs)
            np.testing.assert_array_equal(one.top_ids, other.top_ids)


def test_logprobs_of_constrained_tokens_are_those_of_the_raw_distribution(
    built: Built, compiler: Compile, reference_model: PreTrainedModel
) -> None:
    served: Served = serve(built, [TEXT], constrained("schema", logprobs=2), compile_grammar=compiler)
    with torch.inference_mode():
        logits = reference_model(torch.tensor([TEXT + served.outputs[0]])).logits[0, len(TEXT) - 1 : -1]
    raw = logits.log_softmax(-1)
    ours = np.concatenate([row.logprobs for row in served.logprobs[0]])
    theirs = raw.gather(1, torch.tensor(served.outputs[0])[:, None]).squeeze(1).numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    top = np.concatenate([row.top_logprobs for row in served.logprobs[0]])
    np.testing.assert_allclose(top, raw.topk(2).values.numpy(), atol=2e-3)


def test_steps_without_constrained_rows_wait_for_no_mask(
    built: Built, compiler: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(built, [TEXT], constrained("regex"), compile_grammar=compiler)
    submitted: list[object] = []
    grammars = built.runner._grammars
    submit = grammars._thread.submit
    monkeypatch.setattr(grammars._thread, "submit", lambda *args: submitted.append(args) or submit(*args))
    free = SamplingParams(max_tokens=20, temperature=0.0)
    serve(built, [TEXT[:20], TEXT[:30]], free)
    serve(built, [TEXT[:20], TEXT[:30]], free)
    assert len(submitted) <= 1  # the slot that had a grammar lost it
