"""allowed_token_ids and bad_words: what is ruled out never comes, what is not keeps its share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from penstock.engine.sampler import Sampler
from penstock.engine.sampling_state import SamplingState
from penstock.engine.token_rules import TokenRules
from penstock.kernels.select import select_ops
from penstock.scheduler.messages import SamplingParams
from transformers import NoBadWordsLogitsProcessor

VOCAB = 12
CPU = torch.device("cpu")
KERNELS = select_ops("auto", CPU).sampling
PROMPT = [3, 4]


def random_words(random: np.random.Generator, count: int) -> list[list[int]]:
    return [random.integers(0, VOCAB, random.integers(1, 5)).tolist() for _ in range(count)]


def ruled_out(rules: TokenRules, vocab: int = VOCAB) -> set[int]:
    logits = torch.zeros(vocab)
    rules.apply(logits)
    return set((logits < 0).nonzero().flatten().tolist())


def completes(output: list[int], words: list[list[int]]) -> bool:
    """Brute force: does any word end where `output` ends?"""
    return any(output[-len(word) :] == word for word in words)


def test_bad_words_rule_out_what_transformers_rules_out() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        words = random_words(random, int(random.integers(1, 12)))
        output = random.integers(0, VOCAB, 6).tolist()
        reference = NoBadWordsLogitsProcessor(words)(torch.tensor([output]), torch.zeros(1, VOCAB))[0]
        expected = set(reference.isinf().nonzero().flatten().tolist())
        rules = TokenRules(
            SamplingParams(max_tokens=1, bad_words=words), np.array(output, np.int32), VOCAB, CPU
        )
        assert ruled_out(rules) == expected
        hits += len(expected) > sum(len(word) == 1 for word in words)
    assert hits > 20, "the words were hardly ever about to be completed"


def test_rules_followed_step_by_step_equal_those_of_a_resumed_request() -> None:
    random = np.random.default_rng(2)
    words = random_words(random, 20)
    sampling = SamplingParams(max_tokens=1, bad_words=words)
    followed = TokenRules(sampling, np.zeros(0, np.int32), VOCAB, CPU)
    output: list[int] = []
    for token in random.integers(0, VOCAB, 60).tolist():
        resumed = TokenRules(sampling, np.array(output, np.int32), VOCAB, CPU)
        assert ruled_out(followed) == ruled_out(resumed)
        followed.follow(token)
        output.append(token)


@pytest.mark.parametrize(
    "how", [{"temperature": 0.0}, {"temperature": 1.5}, {"top_p": 0.9, "top_k": 8}], ids=str
)
def test_no_bad_word_and_nothing_but_allowed_tokens_come_out_of_the_sampler(how: dict) -> None:
    random = np.random.default_rng(3)
    allowed = [0, 1, 2, 5, 7, 8]
    words = [[1], [0, 2], [2, 5, 0], [7, 7], [8, 0, 8], [5, 5, 5, 5]]
    free = SamplingParams(max_tokens=99, seed=4, **how)
    ruled = SamplingParams(max_tokens=99, seed=4, allowed_token_ids=allowed, bad_words=words, **how)
    state = SamplingState(2, VOCAB, CPU)
    prompt = np.array(
        [*PROMPT, 0], np.int32
    )  # ends in the beginning of a word, which is none of the output's
    for slot, sampling in enumerate((free, ruled)):
        state.write(slot, prompt, len(prompt), sampling)
    sampler, outputs = Sampler(state, KERNELS), [[], []]
    for position in range(len(prompt), len(prompt) + 400):
        logits = torch.from_numpy(2.0 * random.standard_normal((1, VOCAB))).float().expand(2, -1).clone()
        if len(outputs[1]) == 0:
            logits[1, 2] = 50.0
        at = np.full(2, position, np.int32)
        for output, token in zip(
            outputs, sampler.sample(logits, np.arange(2, dtype=np.int32), at).tolist(), strict=True
        ):
            output.append(token)
    assert outputs[1][0] == 2, "the prompt is no part of a bad word"
    assert set(outputs[1]) == {0, 2, 5, 7, 8}
    assert not any(completes(outputs[1][: end + 1], words) for end in range(len(outputs[1])))
    assert len(set(outputs[0])) == VOCAB
    assert any(completes(outputs[0][: end + 1], words) for end in range(len(outputs[0])))


def test_allowed_tokens_keep_their_relative_probabilities() -> None:
    count, allowed = 4_000, [2, 3, 9]
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5))
    state = SamplingState(1, VOCAB, CPU)
    sampling = SamplingParams(max_tokens=count, seed=6, allowed_token_ids=allowed)
    state.write(0, np.array(PROMPT, np.int32), len(PROMPT), sampling)
    positions = np.arange(count, dtype=np.int32)
    tokens = Sampler(state, KERNELS).sample(logits.expand(count, -1), np.zeros(count, np.int32), positions)
    shares = torch.bincount(tokens.long(), minlength=VOCAB) / count
    assert shares[allowed].sum() == 1
    assert (shares[allowed] - logits[0, allowed].softmax(-1)).abs().max() < 0.04


def test_where_only_bad_words_are_allowed_an_allowed_token_comes() -> None:
    for temperature in (0.0, 1e-4, 1.0, 100.0):
        sampling = SamplingParams(
            max_tokens=9, temperature=temperature, allowed_token_ids=[5, 6], bad_words=[[5], [6, 6]], seed=1
        )
        state = SamplingState(1, VOCAB, CPU)
        state.write(0, np.array([*PROMPT, 6], np.int32), len(PROMPT), sampling)
        logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(7))
        token = Sampler(state, KERNELS).sample(logits, np.zeros(1, np.int32), np.full(1, 3, np.int32))
        assert int(token) in (5, 6)


def test_a_request_without_rules_after_one_with_rules_is_free_again() -> None:
    state = SamplingState(1, VOCAB, CPU)
    greedy = SamplingParams(max_tokens=9, temperature=0.0)
    logits = torch.zeros(1, VOCAB)
    logits[0, 4] = 1.0
    at = (np.zeros(1, np.int32), np.full(1, 2, np.int32))
    ruled = SamplingParams(max_tokens=9, temperature=0.0, bad_words=[[4]])
    state.write(0, np.array(PROMPT, np.int32), 2, ruled)
    assert not state.plain[0]
    assert int(Sampler(state, KERNELS).sample(logits, *at)) == 0
    state.write(0, np.array(PROMPT, np.int32), 2, greedy)
    assert state.plain[0]
    assert int(Sampler(state, KERNELS).sample(logits, *at)) == 4
