"""Sampling in plain torch, on any device: the oracle of every back end and the fallback of all.

Every row is computed by operations that treat it the same in any batch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..staged import on_device
from .interface import Float64, Int32, Penalties, SamplingParameters

NARROW = 128  # candidates looked at before the whole vocabulary is
BLOCK = 512  # of the two-level sums over the vocabulary
FINE = 32  # blocks of the search for the largest
# Logits worked on together: temporaries stay in the caches and in memory that is reused.
ELEMENTS_AT_ONCE = 1 << 19


class TorchSampling:
    def argmax(self, logits: torch.Tensor) -> torch.Tensor:
        """(n, V) -> (n,) int32: the first of the largest."""
        return first_argmax(logits).to(torch.int32)

    def sample(
        self,
        logits: torch.Tensor,
        how: SamplingParameters,
        slots: Int32,
        uniform: Float64,
        rows: Int32 | None = None,
    ) -> torch.Tensor:
        """One token for each of `slots` (n,), drawn from its row of logits: (n,) int32."""
        count = len(slots)
        if rows is not None:
            logits = logits.index_select(0, on_device(rows, logits.device))
        at_once = max(1, ELEMENTS_AT_ONCE // logits.shape[1])
        if count > at_once and logits.device.type == "cpu":
            cuts = [slice(first, first + at_once) for first in range(0, count, at_once)]
            return torch.cat([self.sample(logits[cut], how, slots[cut], uniform[cut]) for cut in cuts])
        logits = logits.float()
        greedy, truncated = how.greedy[slots], how.truncated[slots]
        tokens = torch.zeros(count, dtype=torch.int64, device=logits.device)
        for part, draw in (
            (np.flatnonzero(greedy), None),
            (np.flatnonzero(truncated), draw_truncated),
            (np.flatnonzero(~greedy & ~truncated), draw_any),
        ):
            if not part.size:
                continue
            if part.size == count:  # nothing to be picked out
                mine, my_slots, my_uniform = logits, slots, uniform
            else:
                at = on_device(part, logits.device)
                mine, my_slots, my_uniform = logits[at], slots[part], uniform[part]
            if draw is None:
                drawn = first_argmax(mine)
            else:
                slot = on_device(my_slots, logits.device).long()
                drawn = draw(mine, how, slot, on_device(my_uniform, logits.device))
            if part.size == count:
                return drawn.to(torch.int32)
            tokens[at] = drawn
        return tokens.to(torch.int32)

    def penalise(self, logits: torch.Tensor, penalties: Penalties, slots: Int32, count_rows: Int32) -> None:
        """logits (n, V) float32 of `slots` (n,), in place: repetition, then frequency and presence."""
        at = on_device(slots, logits.device).long()
        rows = on_device(count_rows, logits.device).long()
        counts = penalties.output_counts[rows]
        seen = penalties.prompt_has[rows] | (counts > 0)
        repetition = penalties.repetition[at, None]
        repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
        penalised = torch.where(seen, repeated, logits) - penalties.frequency[at, None] * counts
        logits.copy_(penalised - penalties.presence[at, None] * (counts > 0))

    def score(
        self, logits: torch.Tensor, token_ids: torch.Tensor, k: int, rows: Int32 | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log probabilities (n,), ranks (n,), the k best ids (n, k) and their log probabilities."""
        if rows is not None:
            logits = logits.index_select(0, on_device(rows, logits.device))
        logits = logits.float()
        normaliser = logits.logsumexp(-1, keepdim=True)
        chosen = logits.gather(-1, token_ids.long()[:, None])
        ranks = (logits > chosen).sum(-1) + 1
        top = logits.topk(k, dim=-1)
        return (
            (chosen - normaliser).squeeze(-1),
            ranks.to(torch.int32),
            top.indices.to(torch.int32),
            top.values - normaliser,
        )


def draw_any(
    logits: torch.Tensor, how: SamplingParameters, slots: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Rows without top-k and top-p: the CDF runs over the whole vocabulary in the order of ids."""
    weights = relative_weights(logits, how.temperature[slots])
    return draw_by_id(cut_min_p(weights, how.min_p[slots]), uniform)


def draw_truncated(
    logits: torch.Tensor, how: SamplingParameters, slots: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Rows with top-k or top-p: decided among the best few wherever these hold all that is kept."""
    min_p, top_k, top_p = how.min_p[slots], how.top_k[slots], how.top_p[slots]
    weights = relative_weights(logits, how.temperature[slots])
    tokens, complete = draw_among_best(weights, top_k, top_p, min_p, uniform)
    for row in (~complete).nonzero().flatten().cpu().tolist():
        left = truncate(weights[row], int(top_k[row]), float(top_p[row]))
        tokens[row] = draw_by_id(cut_min_p(left[None], min_p[row, None]), uniform[row, None])[0]
    return tokens


def blocks(x: torch.Tensor, fill: float) -> torch.Tensor:
    """(n, vocab) -> (n, blocks, BLOCK), the end filled up."""
    missing = -x.shape[1] % BLOCK
    padded = F.pad(x, (0, missing), value=fill) if missing else x
    return padded.view(len(x), padded.shape[1] // BLOCK, BLOCK)


def largest(x: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, vocab) -> values and ids (n, num) of the largest, descending; which of equal ones is left open.

    Only the `num` fine blocks with the largest maxima can hold them, which spares sorting most of the vocabulary.
    """
    vocab = x.shape[1]
    if vocab < 4 * num * FINE or vocab % FINE:
        best = x.topk(num, dim=-1)
        return best.values, best.indices
    parts = x.view(len(x), -1, FINE)
    chosen = parts.amax(-1).topk(num, dim=-1, sorted=False).indices
    best = parts.gather(1, chosen[:, :, None].expand(-1, -1, FINE)).flatten(1).topk(num, dim=-1)
    block = chosen.gather(1, best.indices // FINE)
    return best.values, block * FINE + best.indices % FINE


def first_argmax(logits: torch.Tensor) -> torch.Tensor:
    """(n, vocab) -> (n,) int64: the first of the largest.

    By blocks: torch's amax runs at the speed of memory in every dtype, its argmax at a thirtieth of it in bfloat16.
    """
    if logits.shape[1] <= BLOCK:
        return logits.float().argmax(-1)
    parts = blocks(logits, float("-inf"))
    best = parts.amax(-1).float().argmax(-1)
    inside = parts[torch.arange(len(parts), device=parts.device), best].float().argmax(-1)
    return best * BLOCK + inside


def relative_weights(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """(n, vocab) probabilities at `temperature` (n,), relative to the most likely token's, which is 1."""
    scaled = logits / temperature[:, None]
    return (scaled - scaled.amax(-1, keepdim=True)).exp_()


def cut_min_p(weights: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Tokens less likely than `min_p` (n,) times the most likely one get none."""
    return torch.where(weights >= min_p[:, None], weights, 0.0)


def draw_by_id(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse CDF over ids: weights (n, vocab), uniform (n,) float64 -> (n,) int64.

    Two levels, sums in float64: the block that holds the point, then the place in it.
    """
    parts = blocks(weights, 0.0)
    ends = parts.sum(-1).double().cumsum(-1)
    point = uniform * ends[:, -1]
    last = (ends < ends[:, -1:]).sum(-1)  # the last block that weighs anything
    block = torch.minimum((ends <= point[:, None]).sum(-1), last)
    rows = torch.arange(len(parts), device=parts.device)
    before = torch.where(block > 0, ends[rows, block - 1], 0.0)
    inner = parts[rows, block].double().cumsum(-1)
    return block * BLOCK + place(inner, point - before)


def place(ends: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative weight `ends` (n, k) exceeds `point` (n,), never past the last that weighs."""
    last = (ends < ends[:, -1:]).sum(-1)
    return torch.minimum((ends <= point[:, None]).sum(-1), last)


def draw_among_best(
    weights: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the NARROW best tokens: (n,) int64 tokens, and (n,) bool whether these held all that is kept.

    The CDF runs in the order of ids, as in `draw_by_id`: rounding that swaps two nearly equal weights moves nothing.
    Where the second result is false the first means nothing.
    """
    vocab = weights.shape[1]
    num = min(NARROW, vocab)
    best, ids = largest(weights, num)
    ids, by_id = ids.sort(dim=-1)
    candidates = best.gather(-1, by_id)
    best = candidates.sort(dim=-1, descending=True).values

    bounded = (top_k > 0) & (top_k <= num)
    kth = best.gather(-1, (top_k.long() - 1).clamp(0, num - 1)[:, None])
    least = torch.where(bounded[:, None], kth, -1.0)
    mass = best.double()
    mass = torch.where(best >= least, mass, 0.0)
    total = torch.where(bounded, mass.sum(-1), blocks(weights, 0.0).sum(-1).double().sum(-1))
    before = mass.cumsum(-1) - mass
    needed = (before < top_p.double()[:, None] * total[:, None]) & (best >= least)
    smallest = torch.where(needed, best, torch.inf).amin(-1, keepdim=True)
    least = torch.where(top_p[:, None] < 1.0, torch.maximum(least, smallest), least)

    # Behind a last one that weighs nothing, nothing weighs: a grammar may leave a handful of tokens.
    complete = ((best[:, -1:] < least) | (best[:, -1:] == 0)).squeeze(-1)
    # What top-p is a share of, if top-k takes more than these, is not known here.
    complete &= ~((top_k > num) & (top_k < vocab) & (top_p < 1.0))
    if num == vocab:
        complete = torch.ones_like(complete)
    kept = (candidates >= least) & (candidates >= min_p[:, None])
    ends = torch.where(kept, candidates.double(), 0.0).cumsum(-1)
    chosen = place(ends, uniform * ends[:, -1])
    return ids.gather(-1, chosen[:, None]).squeeze(-1), complete


def truncate(weights: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """One row (vocab,), top-k then top-p, for sets too large for `draw_among_best`; what is not kept becomes 0.

    The threshold of top-p is found without a sort of the vocabulary: the mass per upper half of the weights' bit
    patterns (ordered as the weights are, none being negative) tells the bin in which it lies; only that is sorted.
    """
    if 0 < top_k < len(weights):
        kth = weights.topk(top_k).values[-1]
        weights = torch.where(weights >= kth, weights, 0.0)
    if top_p >= 1.0:
        return weights
    bins = weights.view(torch.int32) >> 16
    mass = torch.bincount(bins, weights=weights, minlength=2).flip(0).double().cumsum(0)
    wanted = top_p * mass[-1]
    crossing = int((mass < wanted).sum())  # bins above it hold less than is wanted
    above = mass[crossing - 1] if crossing else mass.new_zeros(())
    inside = weights[bins == len(mass) - 1 - crossing].sort(descending=True).values
    last = int((above + inside.double().cumsum(0) < wanted).sum())
    return torch.where(weights >= inside[min(last, len(inside) - 1)], weights, 0.0)
