"""Log probabilities of tokens under the raw model distribution, with ranks and the best alternatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..kernels.sampling.interface import Sampling
from ..scheduler.arrays import Int32
from ..scheduler.plan import RowLogprobs


@dataclass(frozen=True, slots=True)
class Scores:
    """Of n tokens: logprobs float32 (n,), ranks int32 (n,) from 1, the k best ids and their logprobs (n, k)."""

    token_ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor

    def row(self, row: int, first: int, last: int, k: int, *, is_prompt: bool) -> RowLogprobs:
        """Entries first .. last-1 with k alternatives each, as row `row` of a plan."""
        return RowLogprobs(
            row=row,
            is_prompt=is_prompt,
            token_ids=self.token_ids[first:last].cpu().numpy().astype(np.int32),
            logprobs=self.logprobs[first:last].cpu().numpy(),
            ranks=self.ranks[first:last].cpu().numpy().astype(np.int32),
            top_ids=self.top_ids[first:last, :k].cpu().numpy().astype(np.int32),
            top_logprobs=self.top_logprobs[first:last, :k].cpu().numpy(),
        )


def score(
    kernels: Sampling, logits: torch.Tensor, token_ids: torch.Tensor, k: int, rows: Int32 | None = None
) -> Scores:
    """How likely each of token_ids (n,) was in its row of logits, (any, vocab_size) of any float dtype, and the k best
    instead. rows (n,) are their rows; None for the first n."""
    return Scores(token_ids, *kernels.score(logits, token_ids, min(k, logits.shape[1]), rows))


def concatenate(parts: list[Scores]) -> Scores:
    return Scores(*(torch.cat([getattr(part, name) for part in parts]) for name in Scores.__slots__))
