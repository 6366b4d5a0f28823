"""The parts that sampling in plain torch is made of, where they are cleverer than their definition."""

from __future__ import annotations

import torch
from penstock.kernels.sampling.reference import draw_among_best, largest, truncate

VOCAB = 700  # more than one block of sums, more than the narrow set of candidates


def random_logits(rows: int = 1, vocab: int = VOCAB, spread: float = 2.0, seed: int = 0) -> torch.Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def test_truncation_by_bins_keeps_what_a_sort_keeps() -> None:
    for seed in range(20):
        weights = random_logits(seed=seed, spread=0.3 * seed + 0.01)[0].exp()
        for top_p in (0.0001, 0.2, 0.5, 0.9, 0.9999):
            values = weights.sort(descending=True).values.double()
            count = int((values.cumsum(0) - values < top_p * values.sum()).sum())
            kept = truncate(weights, 0, top_p)
            assert kept.count_nonzero() == count
            assert (kept[kept > 0] >= values[count - 1].float()).all()


def test_the_largest_are_found_in_any_vocabulary() -> None:
    for vocab in (130, 5_000, 32_000, 32_001, 151_936):
        logits = random_logits(3, vocab, seed=vocab)
        logits[1, 64:128] += 20.0  # most of one row's best lie side by side
        values, ids = largest(logits, 128)
        assert torch.equal(values, logits.topk(128).values)
        assert torch.equal(logits.gather(1, ids), values)
        assert all(len(set(row.tolist())) == 128 for row in ids)


def test_a_handful_of_tokens_is_decided_without_the_whole_vocabulary() -> None:
    """A grammar often leaves fewer tokens than top-k keeps."""
    logits = torch.full((1, VOCAB), float("-inf"))
    logits[0, [3, 7, 400]] = torch.tensor([0.3, -1.0, 2.0])
    weights = logits.softmax(-1)
    ones = torch.ones(1)
    tokens, complete = draw_among_best(
        weights, torch.tensor([40]), ones, 0 * ones, torch.tensor([0.5], dtype=torch.float64)
    )
    assert complete.all()
    assert int(tokens) in (3, 7, 400)
