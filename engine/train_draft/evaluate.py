"""How many tokens a verification keeps: greedy drafts of a head against the target's own greedy outputs.

No verification is run. Greedy speculation gives the output that the target gives alone, so drafts are compared with
that, from every position where drafting may begin, and the walk over the positions where it would is done after.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .chains import anchors_of, run_chains
from .heads import DraftHead
from .loss import pieces, rows_at_once
from .target import FrozenTarget
from .token_sets import TokenSet, similar


@dataclass(slots=True)
class Acceptance:
    """With drafts of `num_drafts` tokens: `steps` verifications, the `tokens` that came of them, and of how many the
    draft was right up to each position."""

    num_drafts: int
    steps: int
    tokens: int
    accepted: npt.NDArray[np.int64]  # (num_drafts,)

    @property
    def mean_length(self) -> float:
        """Tokens per verification, the one that it draws itself included."""
        return self.tokens / max(1, self.steps)

    @property
    def rates(self) -> list[float]:
        return [float(rate) for rate in self.accepted / max(1, self.steps)]


@torch.no_grad()
def right_drafts(
    head: DraftHead,
    target: FrozenTarget,
    texts: TokenSet,
    num_drafts: int,
    batch_tokens: int,
    dtype: torch.dtype,
) -> list[npt.NDArray[np.int64]]:
    """Per text and row: how many of the drafts from there are what the text goes on with, -1 where none begins."""
    lengths = np.diff(texts.ends)
    found = [np.full(length, -1, np.int64) for length in lengths]
    for indexes in similar(np.argsort(lengths, kind="stable").tolist(), lengths, batch_tokens):
        batch = texts.batch(indexes, target.device)
        anchors = anchors_of(batch)
        accepted = torch.where(anchors.real, 0, -1)
        alive = anchors.real.clone()
        with torch.autocast(target.device.type, dtype, enabled=dtype != torch.float32):
            states = target.states(batch.tokens, head.aux_layers)
            for step in run_chains(head, target.embedding, batch, states, anchors, num_drafts):
                hit = torch.zeros_like(alive)
                hit[step.counts] = first_choice(head, step.states) == batch.tokens[step.texts, step.positions]
                alive &= hit
                accepted += alive.long()
        for row, index in enumerate(indexes):
            real = anchors.real[row].cpu()
            found[index][anchors.rows[row].cpu()[real].numpy()] = accepted[row].cpu()[real].numpy()
    return found


def first_choice(head: DraftHead, states: torch.Tensor) -> torch.Tensor:
    """(n, hidden_size) -> the target's id (n,) of the most likely token."""
    parts = pieces(states, rows_at_once(len(head.target_ids)))
    return head.target_ids[torch.cat([head.logits(part).float().argmax(dim=-1) for part in parts])]


def walk(texts: TokenSet, right: list[npt.NDArray[np.int64]], num_drafts: int) -> Acceptance:
    """Drafts of `num_drafts` tokens from where each verification ends. `right` may be of longer ones."""
    found = Acceptance(num_drafts, 0, 0, np.zeros(num_drafts, np.int64))
    for index in range(len(texts)):
        last = len(texts.text(index)) - 1
        begins = np.flatnonzero(right[index] >= 0)
        row = int(begins[0]) if begins.size else last
        while row + 1 < last:  # token row + 1 is known, row + 2 is not
            accepted = min(int(right[index][row]), num_drafts)
            kept = min(accepted + 1, last - row - 1)
            found.steps += 1
            found.tokens += kept
            found.accepted[:accepted] += 1
            row += kept
    return found
