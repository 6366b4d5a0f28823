"""The sampler draws from the distribution that transformers' processors define, reproducibly and whatever the batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from penstock.engine.sampler import Sampler, draw_among_best, first_argmax, largest, truncate, uniform
from penstock.engine.sampling_state import SamplingState
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


class GridSampler(Sampler):
    """The uniform numbers are an even grid, so counting tokens measures the distribution itself."""

    elements_at_once = GRID * VOCAB

    def _uniform(self, slots: np.ndarray, positions: np.ndarray) -> torch.Tensor:
        return (torch.arange(len(slots), dtype=torch.float64) + 0.5) / len(slots)


def distribution(sampling: SamplingParams, logits: torch.Tensor) -> torch.Tensor:
    """(vocab,) what share of draws each token gets, to 1 / GRID."""
    sampler = GridSampler(state_of(sampling))
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
def test_draws_follow_the_distribution_of_the_reference(sampling: dict) -> None:
    params = SamplingParams(max_tokens=99, **sampling)
    logits = random_logits()
    logits[0, [5, 9, 17, 30, 41, 77]] += 3.0  # what penalties act on weighs something
    error = (distribution(params, logits) - expected_distribution(params, logits)).abs().max()
    assert error <= 1.01 / GRID


def test_flat_and_peaked_distributions_are_truncated_exactly() -> None:
    for spread in (0.0001, 0.1, 12.0):
        logits = random_logits(spread=spread, seed=3)
        for sampling in ({"top_p": 0.5}, {"top_k": 600}, {"top_p": 0.95, "top_k": 200}):
            params = SamplingParams(max_tokens=9, **sampling)
            error = (distribution(params, logits) - expected_distribution(params, logits)).abs().max()
            assert error <= 1.01 / GRID, (spread, sampling)


def test_tokens_that_tie_with_the_last_one_kept_are_kept() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, :10] = 5.0
    for sampling in ({"top_k": 4}, {"top_p": 0.3}, {"top_k": 3, "top_p": 0.5}):
        shares = distribution(SamplingParams(max_tokens=9, **sampling), logits)
        assert (shares[:10] - 0.1).abs().max() <= 1.01 / GRID
        assert shares[10:].sum() == 0


def test_truncation_by_bins_keeps_what_a_sort_keeps() -> None:
    for seed in range(20):
        weights = random_logits(seed=seed, spread=0.3 * seed + 0.01)[0].exp()
        for top_p in (0.0001, 0.2, 0.5, 0.9, 0.9999):
            values = weights.sort(descending=True).values.double()
            count = int((values.cumsum(0) - values < top_p * values.sum()).sum())
            kept = truncate(weights, 0, top_p)
            assert kept.count_nonzero() == count
            assert (kept[kept > 0] >= values[count - 1].float()).all()


def test_the_first_of_equal_maxima_wins_in_every_dtype() -> None:
    for vocab in (7, 512, 513, 5_000):
        for dtype in (torch.float32, torch.bfloat16):
            logits = random_logits(6, vocab, seed=vocab).to(dtype)
            expected = [row.tolist().index(max(row.tolist())) for row in logits]
            assert first_argmax(logits).tolist() == expected
    assert first_argmax(torch.full((2, 2_000), -3.0)).tolist() == [0, 0]


def test_the_largest_are_found_in_any_vocabulary() -> None:
    for vocab in (130, 5_000, 32_000, 32_001, 151_936):
        logits = random_logits(3, vocab, seed=vocab)
        logits[1, 64:128] += 20.0  # most of one row's best lie side by side
        values, ids = largest(logits, 128)
        assert torch.equal(values, logits.topk(128).values)
        assert torch.equal(logits.gather(1, ids), values)
        assert all(len(set(row.tolist())) == 128 for row in ids)


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
def test_sampled_tokens_pass_a_chi_square_test(sampling: dict) -> None:
    count = 6_000
    params = SamplingParams(max_tokens=count, seed=42, **sampling)
    logits = random_logits(seed=9)
    positions = np.arange(count, dtype=np.int32)
    tokens = Sampler(state_of(params)).sample(logits.expand(count, -1), np.zeros(count, np.int32), positions)
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


def test_a_row_draws_the_same_alone_in_a_batch_and_in_any_order() -> None:
    rows = len(MIXED)
    for trial in range(10):
        logits = random_logits(rows, seed=100 + trial)
        slots = np.arange(rows, dtype=np.int32)
        positions = np.full(rows, len(TOKENS), np.int32) + np.arange(rows, dtype=np.int32)
        together = Sampler(state_of(*MIXED)).sample(logits, slots, positions).tolist()
        alone = [
            int(Sampler(state_of(*MIXED)).sample(logits[i, None], slots[i, None], positions[i, None])[0])
            for i in range(rows)
        ]
        assert alone == together
        few = Sampler(state_of(*MIXED))
        few.elements_at_once = 3 * VOCAB
        assert few.sample(logits, slots, positions).tolist() == together
        order = np.random.default_rng(trial).permutation(rows)
        permuted = Sampler(state_of(*MIXED)).sample(logits[order], slots[order], positions[order])
        assert permuted.tolist() == [together[i] for i in order]


def test_counts_kept_step_by_step_equal_counts_of_a_resumed_request() -> None:
    """What a preempted request's slot is rebuilt from gives the logits it would have had."""
    sampling = SamplingParams(
        max_tokens=99, temperature=0.0, frequency_penalty=0.4, presence_penalty=0.3, repetition_penalty=1.2
    )
    state = state_of(sampling, sampling, sampling)
    sampler, tokens = Sampler(state), TOKENS
    for step in range(12):
        sampled = sampler.sample(
            random_logits(seed=step), np.array([1], np.int32), np.array([len(tokens)], np.int32)
        )
        tokens = np.append(tokens, sampled.numpy()).astype(np.int32)
    resumed = state_of(sampling, tokens=tokens)
    logits = random_logits(seed=99)
    torch.testing.assert_close(
        state.penalise(logits, np.array([1])), resumed.penalise(logits, np.array([0])), atol=0, rtol=0
    )


def test_a_slot_forgets_its_former_request() -> None:
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
    assert Sampler(state).sample(logits, slots, positions).tolist() == [int(logits.argmax())]


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
    allowed: list[int], rules: dict, expected: list[int], temperature: float
) -> None:
    sampling = SamplingParams(
        max_tokens=99, temperature=temperature, grammar=GrammarSpec("regex", "(3|7)*"), **rules
    )
    logits = masked(allowed)
    found = distribution(sampling, logits)
    if temperature == 0.0:
        best = max(expected, key=lambda token: float(logits[0, token]))
        assert found.nonzero().flatten().tolist() == [best]
    else:
        wanted = torch.zeros(VOCAB)
        wanted[expected] = logits[0, expected].softmax(-1)
        torch.testing.assert_close(found, wanted, atol=2 / GRID, rtol=0)


def test_a_handful_of_tokens_is_decided_without_the_whole_vocabulary() -> None:
    """A grammar often leaves fewer tokens than top-k keeps."""
    weights = masked([3, 7, 400]).softmax(-1)
    ones = torch.ones(1)
    tokens, complete = draw_among_best(
        weights, torch.tensor([40]), ones, 0 * ones, torch.tensor([0.5], dtype=torch.float64)
    )
    assert complete.all()
    assert int(tokens) in (3, 7, 400)
