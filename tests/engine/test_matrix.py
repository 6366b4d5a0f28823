"""Features hold together: every pair of ways to run a request gives what the slow reference gives.

The reference runs each request by itself: plain torch, no prefix cache, no chunks, no step in flight. A new feature
adds its row to `ENVIRONMENT` (how requests are run) or to `REQUESTS` (what a request asks for).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from engine_runs import Served, serve
from oracle_drafter import oracle_speculation
from penstock.engine.build import Built, create_runner
from penstock.engine.grammar.store import Compile, open_compiler
from penstock.engine.runner import ModelRunner
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import EngineConfig, GrammarSpec, SamplingParams
from tiny_models import VOCAB_SIZE, make_checkpoint

TOKENS = 20
TEXT = torch.randint(3, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(8)).tolist()
PAGES = 160

REQUESTS = {
    "greedy": SamplingParams(max_tokens=TOKENS, temperature=0.0),
    "seeded": SamplingParams(max_tokens=TOKENS, temperature=1.1, seed=1),
    "truncated": SamplingParams(max_tokens=TOKENS, temperature=0.9, top_p=0.9, top_k=40, min_p=0.01, seed=2),
    "penalties": SamplingParams(
        max_tokens=TOKENS, temperature=0.0, repetition_penalty=1.4, presence_penalty=0.5, logprobs=1
    ),
    "frequency": SamplingParams(max_tokens=TOKENS, temperature=1.0, frequency_penalty=1.5, seed=3),
    "bias": SamplingParams(max_tokens=TOKENS, temperature=1.0, logit_bias={9: 4.0, 11: -100.0}, seed=7),
    "min tokens": SamplingParams(
        max_tokens=TOKENS, min_tokens=8, stop_token_ids=list(range(3, 100)), temperature=1.0, seed=5
    ),
    "token rules": SamplingParams(
        max_tokens=TOKENS,
        temperature=0.0,
        allowed_token_ids=list(range(3, 23)),
        bad_words=[[a, b] for a in range(3, 23) for b in range(3, 13)],
    ),
    "grammar": SamplingParams(
        max_tokens=TOKENS, temperature=1.1, seed=9, logprobs=1, grammar=GrammarSpec("regex", "([a-z]{3} ){9}")
    ),
    "logprobs": SamplingParams(max_tokens=TOKENS, temperature=0.0, logprobs=3),
    "prompt logprobs": SamplingParams(
        max_tokens=TOKENS, temperature=1.0, prompt_logprobs=2, logprobs=0, seed=6
    ),
}
PROMPTS = [TEXT[: 20 + 4 * index] for index in range(len(REQUESTS))]  # each a prefix of the next
ENVIRONMENT = ("batch", "overlap", "chunks", "cache", "preemption", "cpu kernels", "resumed", "drafts")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    make_checkpoint("qwen3", path)
    return path


@pytest.fixture(scope="module")
def compiler(path: Path) -> Compile:
    return open_compiler(path, VOCAB_SIZE)


@pytest.fixture(scope="module")
def engines(path: Path) -> Iterator[dict[str, Built]]:
    made = {name: engine(path, name) for name in ("torch", "cpu")}
    yield made
    for built in made.values():
        built.runner.close()


def engine(path: Path, backend: str) -> Built:
    return create_runner(
        EngineConfig(
            model_dir=str(path),
            attention_backend=backend,  # type: ignore[arg-type]
            device="cpu",
            num_threads=1,
            max_model_len=96,
            page_size=4,
            num_pages=PAGES,
            max_num_seqs=len(REQUESTS),
            max_num_batched_tokens=1024,
        )
    )


def configured(built: Built, **changes: object) -> Built:
    return replace(built, scheduler_config=replace(built.scheduler_config, **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(engines: dict[str, Built], compiler: Compile) -> list[Served]:
    slow = configured(engines["torch"], enable_prefix_caching=False)
    return [
        serve(slow, [prompt], how, steps_in_flight=1, compile_grammar=compiler)
        for prompt, how in zip(PROMPTS, REQUESTS.values(), strict=True)
    ]


def run(
    engines: dict[str, Built], compiler: Compile, features: tuple[str, ...], expected: list[Served]
) -> list[Served]:
    """All requests under these features; one `Served` per request, or one for all when they run as a batch."""
    changes: dict[str, object] = {"enable_prefix_caching": "cache" in features}
    if "chunks" in features:
        changes["max_num_batched_tokens"] = 11
        changes["max_num_seqs"] = 8
    if "preemption" in features:
        changes["groups"] = (KVGroup("full", num_pages=30),)
    built = configured(engines["cpu" if "cpu kernels" in features else "torch"], **changes)
    if "drafts" in features:
        changes["max_draft_tokens"] = 5
    prompts, counts = PROMPTS, [len(prompt) for prompt in PROMPTS]
    if "resumed" in features:
        prompts = [p + e.outputs[0][:7] for p, e in zip(PROMPTS, expected, strict=True)]
    built = configured(engines["cpu" if "cpu kernels" in features else "torch"], **changes)
    texts = [p + e.outputs[0] for p, e in zip(PROMPTS, expected, strict=True)] if "drafts" in features else []
    with drafting(built.runner, texts):
        return launch(built, features, prompts, counts, compiler)


@contextmanager
def drafting(runner: ModelRunner, texts: list[list[int]]) -> Iterator[None]:
    """Drafts that are right up to every fourth token, where the scheduler leaves room for them."""
    drafter = oracle_speculation(
        runner.num_slots, texts, max_draft_tokens=5, wrong_every=4, vocab_size=VOCAB_SIZE
    )
    with patch.object(runner, "_speculation", drafter):
        yield


def launch(
    built: Built, features: tuple[str, ...], prompts: list[list[int]], counts: list[int], compiler: Compile
) -> list[Served]:
    sampling = list(REQUESTS.values())
    depth = 2 if "overlap" in features else 1
    # Preemption and cache hits need company: other requests before or beside.
    if {"batch", "cache", "preemption"} & set(features):
        every = 6 if "cache" in features and "preemption" not in features else 0
        together = serve(
            built,
            prompts,
            sampling,
            steps_in_flight=depth,
            arrive_every=every,
            num_prompt_tokens=counts,
            compile_grammar=compiler,
        )
        if "preemption" in features:
            assert together.load.num_preemptions > 0
        if "cache" in features:
            assert together.load.prefix_cache_hits > 0
        if "drafts" in features:
            assert 0 < together.load.num_accepted_tokens < together.load.num_draft_tokens
        return [together]
    return [
        serve(
            built,
            [prompt],
            how,
            steps_in_flight=depth,
            num_prompt_tokens=[count],
            compile_grammar=compiler,
        )
        for prompt, how, count in zip(prompts, sampling, counts, strict=True)
    ]


def scores(served: Served, index: int, is_prompt: bool) -> np.ndarray:
    rows = [row.logprobs for row in served.logprobs[index] if row.is_prompt == is_prompt]
    return np.concatenate(rows) if rows else np.zeros(0, np.float32)


@pytest.mark.parametrize("features", list(combinations(ENVIRONMENT, 2)), ids=" x ".join)
def test_pair_of_features_gives_what_the_slow_reference_gives(
    engines: dict[str, Built], compiler: Compile, expected: list[Served], features: tuple[str, str]
) -> None:
    results = run(engines, compiler, features, expected)
    for index, (name, slow) in enumerate(zip(REQUESTS, expected, strict=True)):
        served, place = (results[0], index) if len(results) == 1 else (results[index], 0)
        assert served.outputs[place] == slow.outputs[0], name
        assert served.requests[place].finish_reason == slow.requests[0].finish_reason, name
        for is_prompt in (True, False):
            ours, reference = scores(served, place, is_prompt), scores(slow, 0, is_prompt)
            if "resumed" in features and not is_prompt:
                reference = reference[len(reference) - len(ours) :]
            np.testing.assert_allclose(ours, reference, atol=2e-4, err_msg=name)
