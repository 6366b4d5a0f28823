"""What a head is trained on: at each step of a chain, the target's own distribution over the draft vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from .chains import TextBatch, anchors_of, run_chains
from .heads import DraftHead
from .target import FrozenTarget

# Logits that exist at once; more are made in pieces, and made again for their gradients.
MOST_LOGITS = 1 << 26
# What a step counts for, relative to the one before it (EAGLE-3's own training weighs so).
DECAY = 0.8


@dataclass(slots=True)
class Tally:
    """Of each step: chains, those whose drafts up to it all were the target's first choice, and their summed loss."""

    chains: torch.Tensor  # (num_steps,) float64
    accepted: torch.Tensor
    loss: torch.Tensor

    @classmethod
    def of(cls, num_steps: int) -> Tally:
        return cls(*(torch.zeros(num_steps, dtype=torch.float64) for _ in range(3)))

    def add(self, other: Tally) -> None:
        self.chains += other.chains
        self.accepted += other.accepted
        self.loss += other.loss

    def acceptance(self) -> list[float]:
        """Per position, the share of the chains that came as far as the first one does: vLLM's measure."""
        return (self.accepted / self.chains.clamp(min=1)).tolist()


def chain_loss(
    head: DraftHead, target: FrozenTarget, batch: TextBatch, num_steps: int, dtype: torch.dtype
) -> tuple[torch.Tensor, Tally]:
    """The loss of a batch, nats per draft: mean over each step's chains, then over steps, later ones less.

    A step whose wanted token the draft vocabulary lacks is left out: the head cannot say it.
    """
    states = target.states(batch.tokens, head.aux_layers)
    wanted = batch.wanted.clone()
    wanted[:, :1] = False
    texts, positions = wanted.nonzero(as_tuple=True)
    # What the target says of every wanted token, and where that is.
    best, goal = said(head, target, states.final[texts, positions - 1])
    place = torch.full_like(batch.tokens, -1)
    place[texts, positions] = torch.arange(len(texts), device=texts.device)
    known = torch.isin(best, head.target_ids)

    anchors = anchors_of(batch)
    tally, total, weights = Tally.of(num_steps), torch.zeros((), device=texts.device), 0.0
    right: torch.Tensor | None = None  # (B, M), so far
    with torch.autocast(target.device.type, dtype, enabled=dtype != torch.float32):
        steps = run_chains(head, target.embedding, batch, states, anchors, num_steps)
        for number, step in enumerate(steps):
            at = place[step.texts, step.positions]
            losses, drafted = compared(head, step.states, goal, at)
            losses = losses * known[at]
            weight = DECAY**number
            total = total + weight * losses.sum() / known[at].sum().clamp(min=1)
            weights += weight
            hit = torch.zeros_like(step.counts)
            hit[step.counts] = drafted == best[at]
            right = hit if right is None else right & hit
            tally.chains[number] = float(step.counts.sum())
            tally.accepted[number] = float(right.sum())
            tally.loss[number] = float(losses.detach().sum())
    return total / max(weights, 1.0), tally


@torch.no_grad()
def said(head: DraftHead, target: FrozenTarget, final: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of states (n, hidden_size): the target's first choice (n,), its distribution over the draft vocabulary (n, V)."""
    rows = rows_at_once(target.config.vocab_size)
    found = []
    for piece in pieces(final, rows):
        logits = target.logits(piece)
        found.append((logits.argmax(dim=-1), logits[:, head.target_ids].softmax(dim=-1)))
    best, goal = zip(*found, strict=True)
    return torch.cat(best), torch.cat(goal)


def compared(
    head: DraftHead, states: torch.Tensor, goal: torch.Tensor, at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy (n,) of the head's logits for `states` (n, hidden_size) to goal[at], and their first choice (n,)."""
    rows = rows_at_once(goal.shape[1])
    if len(states) <= rows:
        return piece_compared(head, states, goal, at)
    found = [
        checkpoint(piece_compared, head, piece, goal, where, use_reentrant=False)
        for piece, where in zip(pieces(states, rows), pieces(at, rows), strict=True)
    ]
    losses, drafted = zip(*found, strict=True)
    return torch.cat(losses), torch.cat(drafted)


def piece_compared(
    head: DraftHead, states: torch.Tensor, goal: torch.Tensor, at: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = head.logits(states).float()
    losses = -(goal[at] * F.log_softmax(logits, dim=-1)).sum(dim=-1)
    return losses, head.target_ids[logits.detach().argmax(dim=-1)]


def pieces(x: torch.Tensor, rows: int) -> list[torch.Tensor]:
    return [x[begin : begin + rows] for begin in range(0, len(x), rows)]


def rows_at_once(vocab_size: int) -> int:
    return max(1, MOST_LOGITS // vocab_size)
