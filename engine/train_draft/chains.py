"""All chains of a batch of texts through a head: what each step drafts, and whether it is what the text goes on with.

The tokens that a chain is fed are the text's own. A chain that drafted another token has ended by then, so which of its
drafts would be accepted is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .heads import DraftHead
from .layer import picked
from .target import TargetStates


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts padded to one length; `wanted` (B, L) bool: tokens that the head is to draft."""

    tokens: torch.Tensor  # (B, L) int64
    lengths: torch.Tensor  # (B,) int64
    wanted: torch.Tensor


@dataclass(frozen=True, slots=True)
class Anchors:
    """Where chains begin, per text and ascending: `rows` (B, M) int64, and `real` (B, M) bool for those that exist.

    Row p is one if tokens p + 1 and p + 2 are wanted: the first is the newest that is known when drafting begins, one
    that the target has made itself.
    """

    rows: torch.Tensor
    real: torch.Tensor


def anchors_of(batch: TextBatch) -> Anchors:
    length = batch.tokens.shape[1]
    begins = torch.zeros_like(batch.wanted)
    begins[:, : length - 2] = batch.wanted[:, 1:-1] & batch.wanted[:, 2:]
    most = max(1, int(begins.sum(dim=1).max()))
    # A stable sort puts the rows that begin a chain first, in order.
    order = torch.sort(begins.int(), dim=1, descending=True, stable=True).indices[:, :most]
    return Anchors(order, torch.gather(begins, 1, order))


@dataclass(frozen=True, slots=True)
class Step:
    """The n chains that a step counts for, and which tokens they draft."""

    counts: torch.Tensor  # (B, M) bool, n of them
    states: torch.Tensor  # (n, hidden_size), of which the head makes logits
    texts: torch.Tensor  # (n,) and where in its text each drafted token is
    positions: torch.Tensor  # (n,)


def run_chains(
    head: DraftHead,
    embedding: torch.Tensor,  # (vocab_size, hidden_size)
    batch: TextBatch,
    states: TargetStates,
    anchors: Anchors,
    num_steps: int,
) -> Iterator[Step]:
    """The steps of all chains of a batch, `num_steps` of them, fewer if no chain is as long."""
    tokens, length = batch.tokens, batch.tokens.shape[1]
    counting = torch.arange(length, device=tokens.device)
    following = torch.cat(
        (tokens[:, 1:], tokens[:, :1]), dim=1
    )  # the last row's is never used: no one sees it
    visible = counting <= anchors.rows[..., None]  # (B, M, L)
    embeddings = embedding[following].to(states.features.dtype)
    fused = head.fused(states.features)
    rows = head.rows(embeddings, fused, counting.expand(len(tokens), -1), visible)
    state = picked(fused, anchors.rows)
    counts = anchors.real
    for number in range(num_steps):
        positions = anchors.rows + number
        drafted_at = positions + 2
        inside = drafted_at < length
        counts = counts & inside & torch.gather(batch.wanted, 1, drafted_at.clamp(max=length - 1))
        if not bool(counts.any()):
            return
        fed = positions.clamp(max=length - 1)
        own, normed = head.step(picked(embeddings, fed), state, fed, rows, first=number == 0)
        texts = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(counts)[counts]
        yield Step(counts, normed[counts], texts, drafted_at[counts])
        state = own
