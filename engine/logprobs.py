"""Log probabilities of tokens under the raw model distribution, with ranks and the best alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
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

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.token_ids, self.logprobs, self.ranks, self.top_ids, self.top_logprobs)


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """Entries first .. last-1 of some scores belong to row `row` of a plan, which wants k alternatives each."""

    row: int
    first: int
    last: int
    k: int
    is_prompt: bool

    def of(self, scores: Sequence[npt.NDArray[Any]], count: int | None = None) -> RowLogprobs:
        """Cut out of `Scores.tensors`, on the host; `count` of the entries, if not all are to be had."""
        token_ids, logprobs, ranks, top_ids, top_logprobs = scores
        mine = slice(self.first, self.last if count is None else min(self.last, self.first + count))
        return RowLogprobs(
            row=self.row,
            is_prompt=self.is_prompt,
            token_ids=token_ids[mine].astype(np.int32),
            logprobs=logprobs[mine],
            ranks=ranks[mine].astype(np.int32),
            top_ids=top_ids[mine, : self.k].astype(np.int32),
            top_logprobs=top_logprobs[mine, : self.k],
        )


def score(
    kernels: Sampling, logits: torch.Tensor, token_ids: torch.Tensor, k: int, rows: Int32 | None = None
) -> Scores:
    """How likely each of token_ids (n,) was in its row of logits, (any, vocab_size) of any float dtype, and the k best
    instead. rows (n,) are their rows; None for the first n."""
    return Scores(token_ids, *kernels.score(logits, token_ids, min(k, logits.shape[1]), rows))


def concatenate(parts: list[Scores]) -> Scores:
    return Scores(*(torch.cat([getattr(part, name) for part in parts]) for name in Scores.__slots__))
