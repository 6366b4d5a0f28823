"""Log probabilities of tokens under the raw model distribution, with ranks and the best alternatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..scheduler.plan import RowLogprobs


@dataclass(frozen=True, slots=True)
class Scores:
    """Of n tokens: logprobs float32 (n,), ranks (n,) 1-based, the k best ids and their logprobs (n, k)."""

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


def score(logits: torch.Tensor, token_ids: torch.Tensor, k: int) -> Scores:
    """logits (n, vocab_size) of any float dtype, token_ids (n,): how likely each was, and the k best instead."""
    logits = logits.float()
    normaliser = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(-1, token_ids.long()[:, None])
    top = logits.topk(min(k, logits.shape[1]), dim=-1)
    return Scores(
        token_ids=token_ids,
        logprobs=(chosen - normaliser).squeeze(-1),
        ranks=(logits > chosen).sum(-1) + 1,
        top_ids=top.indices,
        top_logprobs=top.values - normaliser,
    )


def concatenate(parts: list[Scores]) -> Scores:
    return Scores(*(torch.cat([getattr(part, name) for part in parts]) for name in Scores.__slots__))
