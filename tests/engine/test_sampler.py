"""The sampler draws from the distribution that transformers' processors define, reproducibly and whatever the batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from penstock.engine.sampler import Sampler, uniform
from penstock.engine.sampling_state import SamplingState
from penstock.kernels.sampling.interface import Sampling
from penstock.kernels.select import select_ops
from penstock.scheduler.messages import GrammarSpec, SamplingParams
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB = 700  # more than one block of sums, more than the narrow set of candidates
GRID = 2_000
PROMPT, OUTPUT = [5, 5, 9, 17], [9, 30, 30, 30, 41]
TOKENS = np.array(PROMPT + OUTPUT, np.int32)


def random_logits(rows: int = 1, vocab: int = VOCAB, spread: float = 2.0, seed: int = 0) -> torch.Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def state_of(*samplings: SamplingParams, vocab: int = VOCAB, tokens: np.ndarray = TOKENS) -> SamplingState:
    """Slot i samples as `samplings[i]`; the request in it has PROMPT and OUTPUT behind it."""
    state = SamplingState(len(samplings), vocab, torch.device("cpu"))
    for slot, sampling in enumerate(samplings):
        state.write(slot, tokens, len(PROMPT), sampling)
    return state


@pytest.fixture(params=["cpu", "torch"])
def kernels(request: pytest.FixtureRequest) -> Sampling:
    return select_ops(request.param, torch.device("cpu")).sampling


class GridSampler(Sampler):
    """The uniform numbers are an even grid, so counting tokens measures the distribution itself."""

    def _uniform(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return (np.arange(len(slots)) + 0.5) / len(slots)


def distribution(kernels: Sampling, sampling: SamplingParams, logits: torch.Tensor) -> torch.Tensor:
    """(vocab,) what share of draws each token gets, to 1 / GRID."""
    sampler = GridSampler(state_of(sampling), kernels)
    slots, positions = np.zeros(GRID, np.int32), np.full(GRID, len(TOKENS), np.int32)
    tokens = sampler.sample(logits.expand(GRID, -1), slots, positions)
    return torch.bincount(tokens.long(), minlength=VOCAB) / GRID


def expected_distribution(sampling: SamplingParams, logits: torch.Tensor) -> torch.Tensor:
    """By transformers' processors where they exist, by the definitions of the OpenAI API where not."""
    scores = logits.clone()
    if sampling.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(
            torch.tensor([PROMPT + OUTPUT]), scores
        )
    for token in set(OUTPUT):
        scores[0, token] -= sampling.frequency_penalty * OUTPUT.count(token) + sampling.presence_penalty
    for token, bias in sampling.logit_bias.items():
        scores[0, token] += bias
    if len(OUTPUT) < sampling.min_tokens:
        scores[0, sampling.stop_token_ids] = float("-inf")
    if sampling.temperature == 0.0:
        return torch.nn.functional.one_hot(scores[0].argmax(), VOCAB).float()
    warpers: list[Callable] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return LogitsProcessorList(warpers)(None, scores)[0].softmax(-1)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 128},
        {"top_k": 129},
        {"top_k": 400},
        {"top_k": VOCAB + 5},
        {"top_p": 0.001},
        {"top_p": 0.3},
        {"top_p": 0.7},
        {"top_p": 0.995},
        {"min_p": 0.02},
        {"min_p": 1.0},
        {"top_k": 50, "top_p": 0.8},
        {"top_k": 300, "top_p": 0.97},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.1, "temperature": 0.8},
        {"top_p": 0.99, "min_p": 0.01, "temperature": 1.5},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.7, "temperature": 0.0},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 1.1},
        {"frequency_penalty": -1.5, "presence_penalty": 0.3, "repetition_penalty": 1.3, "top_p": 0.9},
        {"logit_bias": {3: 4.0, 30: -100.0}},
        {"logit_bias": {77: 100.0}, "temperature": 0.0},
        {"min_tokens": 6, "stop_token_ids": [9, 11]},
        {"min_tokens": 5, "stop_token_ids": [9, 11]},
        {"min_tokens": 9, "stop_token_ids": [77], "logit_bias": {77: 100.0}, "top_k": 20},
    ],
    ids=str,
)
def test_draws_follow_the_distribution_of_the_reference(kernels: Sampling, sampling: dict) -> None:
    params = SamplingParams(max_tokens=99, **sampling)
    logits = random_logits()
    logits[0, [5, 9, 17, 30, 41, 77]] += 3.0  # what penalties act on weighs something
    error = (distribution(kernels, params, logits) - expected_distribution(params, logits)).abs().max()
    assert error <= 1.01 / GRID


def test_flat_and_peaked_distributions_are_truncated_exactly(kernels: Sampling) -> None:
    for spread in (0.0001, 0.1, 12.0):
        logits = random_logits(spread=spread, seed=3)
        for sampling in ({"top_p": 0.5}, {"top_k": 600}, {"top_p": 0.95, "top_k": 200}):
            params = SamplingParams(max_tokens=9, **sampling)
            error = (
                (distribution(kernels, params, logits) - expected_distribution(params, logits)).abs().max()
            )
            assert error <= 1.01 / GRID, (spread, sampling)


def test_tokens_that_tie_with_the_last_one_kept_are_kept(kernels: Sampling) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, :10] = 5.0
    for sampling in ({"top_k": 4}, {"top_p": 0.3}, {"top_k": 3, "top_p": 0.5}):
        shares = distribution(kernels, SamplingParams(max_tokens=9, **sampling), logits)
        assert (shares[:10] - 0.1).abs().max() <= 1.01 / GRID
        assert shares[10:].sum() == 0


# --------------------------------------------------------------------------------------------------------- randomness


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """Standard deviations by which the statistic exceeds its mean (normal approximation, bins of 5 and more)."""
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = len(observed) - 1
    return float((((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def test_uniform_numbers_are_uniform_over_seeds_and_over_positions() -> None:
    count = 40_000
    every = np.arange(count, dtype=np.int32)
    for numbers in (
        uniform(np.full(count, 1234, np.uint64), every),
        uniform(every.astype(np.uint64), np.full(count, 77, np.int32)),
    ):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        pairs = np.histogram2d(numbers[:-1], numbers[1:], bins=16, range=[[0, 1], [0, 1]])[0].ravel()
        assert abs(chi_square(pairs, np.full(256, (count - 1) / 256))) < 4


def test_uniform_numbers_differ_between_draws_of_a_position() -> None:
    seeds, positions = np.arange(1_000, dtype=np.uint64), np.arange(1_000, dtype=np.int32)
    first, second = uniform(seeds, positions), uniform(seeds, positions, draw=1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert not (first == second).any()


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.9}, {"top_k": 60, "top_p": 0.9}, {"top_p": 0.999, "temperature": 1.4}],
    ids=str,
)
def test_sampled_tokens_pass_a_chi_square_test(kernels: Sampling, sampling: dict) -> None:
    count = 6_000
    params = SamplingParams(max_tokens=count, seed=42, **sampling)
    logits = random_logits(seed=9)
    positions = np.arange(count, dtype=np.int32)
    tokens = Sampler(state_of(params), kernels).sample(
        logits.expand(count, -1), np.zeros(count, np.int32), positions
    )
    observed = np.bincount(tokens.numpy(), minlength=VOCAB)
    expected = expected_distribution(params, logits).double().numpy() * count
    assert (observed[expected == 0] == 0).all()
    assert abs(chi_square(observed, expected)) < 4


MIXED = [
    SamplingParams(max_tokens=99, temperature=0.0),
    SamplingParams(max_tokens=99, temperature=1.0, seed=1),
    SamplingParams(max_tokens=99, temperature=0.7, top_k=20, seed=2),
    SamplingParams(max_tokens=99, temperature=1.1, top_p=0.95, seed=3),
    SamplingParams(max_tokens=99, top_p=0.9999, seed=2**63 + 5),
    SamplingParams(max_tokens=99, min_p=0.05, seed=5, presence_penalty=0.5),
    SamplingParams(max_tokens=99, temperature=0.0, repetition_penalty=1.2, logit_bias={8: 2.0}),
    SamplingParams(max_tokens=99, top_k=300, seed=7, min_tokens=50, stop_token_ids=[3]),
]


def test_a_row_draws_the_same_alone_in_a_batch_and_in_any_order(kernels: Sampling) -> None:
    rows = len(MIXED)
    for trial in range(10):
        logits = random_logits(rows, seed=100 + trial)
        slots = np.arange(rows, dtype=np.int32)
        positions = np.full(rows, len(TOKENS), np.int32) + np.arange(rows, dtype=np.int32)
        together = Sampler(state_of(*MIXED), kernels).sample(logits, slots, positions).tolist()
        alone = [
            int(
                Sampler(state_of(*MIXED), kernels).sample(
                    logits[i, None], slots[i, None], positions[i, None]
                )[0]
            )
            for i in range(rows)
        ]
        assert alone == together
        order = np.random.default_rng(trial).permutation(rows)
        permuted = Sampler(state_of(*MIXED), kernels).sample(logits[order], slots[order], positions[order])
        assert permuted.tolist() == [together[i] for i in order]


def test_counts_kept_step_by_step_equal_counts_of_a_resumed_request(kernels: Sampling) -> None:
    """What a preempted request's slot is rebuilt from gives the logits it would have had."""
    sampling = SamplingParams(
        max_tokens=99, temperature=0.0, frequency_penalty=0.4, presence_penalty=0.3, repetition_penalty=1.2
    )
    state = state_of(sampling, sampling, sampling)
    sampler, tokens = Sampler(state, kernels), TOKENS
    for step in range(12):
        sampled = sampler.sample(
            random_logits(seed=step), np.array([1], np.int32), np.array([len(tokens)], np.int32)
        )
        tokens = np.append(tokens, sampled.numpy()).astype(np.int32)
    resumed = state_of(sampling, tokens=tokens)
    logits = random_logits(seed=99)
    penalised = [logits.clone(), logits.clone()]
    state.penalise(kernels, penalised[0], np.array([1], np.int32))
    resumed.penalise(kernels, penalised[1], np.array([0], np.int32))
    assert torch.equal(*penalised)
    assert not torch.equal(logits, penalised[0])


def test_a_slot_forgets_its_former_request(kernels: Sampling) -> None:
    heavy = SamplingParams(
        max_tokens=9,
        temperature=0.0,
        frequency_penalty=2.0,
        logit_bias={1: 50.0},
        min_tokens=99,
        stop_token_ids=[4],
    )
    state = state_of(heavy)
    state.write(0, TOKENS, len(PROMPT), SamplingParams(max_tokens=9, temperature=0.0))
    logits = random_logits()
    slots, positions = np.zeros(1, np.int32), np.full(1, len(TOKENS), np.int32)
    assert Sampler(state, kernels).sample(logits, slots, positions).tolist() == [int(logits.argmax())]


def masked(allowed: list[int]) -> torch.Tensor:
    """(1, vocab) logits as a grammar leaves them that allows these tokens alone."""
    logits = torch.full((1, VOCAB), float("-inf"))
    logits[0, allowed] = random_logits()[0, allowed]
    return logits


@pytest.mark.parametrize(
    ("allowed", "rules", "expected"),
    [
        ([3, 7], {"min_tokens": 9, "stop_token_ids": [3, 7]}, [3, 7]),
        ([3, 7], {"min_tokens": 9, "stop_token_ids": [3]}, [7]),
        ([3, 7], {"allowed_token_ids": [1, 2]}, [3, 7]),
        ([3, 7], {"allowed_token_ids": [2, 3]}, [3]),
        ([3, 7], {"bad_words": [[3], [7]]}, [3, 7]),
        ([3, 7], {"bad_words": [[3]], "min_tokens": 9, "stop_token_ids": [8]}, [7]),
        ([3, 7], {"logit_bias": {9: 100.0, 3: -100.0}}, [7]),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_wins_over_whatever_else_rules_tokens_out(
    kernels: Sampling, allowed: list[int], rules: dict, expected: list[int], temperature: float
) -> None:
    sampling = SamplingParams(
        max_tokens=99, temperature=temperature, grammar=GrammarSpec("regex", "(3|7)*"), **rules
    )
    logits = masked(allowed)
    found = distribution(kernels, sampling, logits)
    if temperature == 0.0:
        best = max(expected, key=lambda token: float(logits[0, token]))
        assert found.nonzero().flatten().tolist() == [best]
    else:
        wanted = torch.zeros(VOCAB)
        wanted[expected] = logits[0, expected].softmax(-1)
        torch.testing.assert_close(found, wanted, atol=2 / GRID, rtol=0)
