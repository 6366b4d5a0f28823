"""From logits to the next token of every row.

The order is that of the field (transformers' processors, vLLM up to the place of min-p): repetition penalty,
frequency and presence penalty, logit bias, allowed_token_ids and bad_words, min_tokens (stop ids forbidden),
temperature, top-k, top-p over what top-k left, min-p; then one draw. Temperature 0 takes the most likely token after
min_tokens. Truncation is by threshold: tokens that tie with the last one kept are kept as well, so the result does
not depend on how a sort breaks ties. A grammar's mask is on the logits already, and it wins over all of this.

Draws use the inverse CDF and one uniform number hashed from (seed, position). Every row is computed by operations
that treat it the same in any batch, so a request's tokens do not depend on its company.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from .sampling_state import SamplingState
from .token_rules import UNWANTED

Index = npt.NDArray[np.intp]

NARROW = 128  # candidates looked at before the whole vocabulary is
BLOCK = 512  # of the two-level sums over the vocabulary
FINE = 32  # blocks of the search for the largest


class Sampler:
    # Logits worked on together: temporaries stay in the caches and in memory that is reused.
    elements_at_once = 1 << 19

    def __init__(self, state: SamplingState) -> None:
        self.state = state

    def sample(
        self, logits: torch.Tensor, slots: npt.NDArray[np.int32], positions: npt.NDArray[np.int32]
    ) -> torch.Tensor:
        """logits (n, vocab_size) of `slots` (n,), to draw the tokens at `positions` (n,): (n,) int32 tokens."""
        state = self.state
        if state.plain[slots].all():
            return first_argmax(logits).to(torch.int32)
        at_once = max(1, self.elements_at_once // logits.shape[1])
        if len(slots) > at_once:
            cuts = [slice(first, first + at_once) for first in range(0, len(slots), at_once)]
            return torch.cat([self.sample(logits[cut], slots[cut], positions[cut]) for cut in cuts])
        logits = self._adjust(logits.float(), slots, positions)
        greedy, truncated = state.greedy[slots], state.truncated[slots]
        tokens = torch.empty(len(slots), dtype=torch.int64, device=logits.device)
        for rows, draw in (
            (np.flatnonzero(greedy), self._take_best),
            (np.flatnonzero(truncated), self._draw_truncated),
            (np.flatnonzero(~greedy & ~truncated), self._draw_any),
        ):
            if rows.size == len(slots):
                tokens = draw(logits, slots, positions)
            elif rows.size:
                at = torch.from_numpy(rows).to(logits.device)
                tokens[at] = draw(logits[at], slots[rows], positions[rows])
        penalised = np.flatnonzero(state.penalised[slots])
        if penalised.size:
            state.count(
                slots[penalised].astype(np.intp), tokens[torch.from_numpy(penalised).to(logits.device)]
            )
        ruled = np.flatnonzero(state.ruled[slots])
        if ruled.size:
            state.follow(slots[ruled].tolist(), tokens[torch.from_numpy(ruled).to(logits.device)])
        return tokens.to(torch.int32)

    def _adjust(
        self, logits: torch.Tensor, slots: npt.NDArray[np.int32], positions: npt.NDArray[np.int32]
    ) -> torch.Tensor:
        """Penalties, bias, token rules and min_tokens where asked for; the logits given are left as they are."""
        state = self.state
        penalised = np.flatnonzero(state.penalised[slots])
        biased = np.flatnonzero(state.biased[slots])
        ruled = np.flatnonzero(state.ruled[slots])
        short = np.flatnonzero(positions < state.min_length[slots])
        if not (penalised.size or biased.size or ruled.size or short.size):
            return logits
        given, logits = logits, logits.clone()
        if penalised.size:
            at = torch.from_numpy(penalised).to(logits.device)
            logits[at] = state.penalise(logits[at], slots[penalised].astype(np.intp))
        for row in biased.tolist():
            state.add_bias(logits[row], int(slots[row]))
        for row in ruled.tolist():
            state.rule_out(logits[row], int(slots[row]))
        for row in short.tolist():
            state.forbid_stop(logits[row], int(slots[row]))
        torn = np.flatnonzero(
            state.constrained[slots] & (state.ruled[slots] | (positions < state.min_length[slots]))
        )
        if torn.size:
            at = torch.from_numpy(torn).to(logits.device)
            logits[at] = grammar_first(given[at], logits[at])
        return logits

    def _take_best(
        self, logits: torch.Tensor, slots: npt.NDArray[np.int32], positions: npt.NDArray[np.int32]
    ) -> torch.Tensor:
        return first_argmax(logits)

    def _draw_any(
        self, logits: torch.Tensor, slots: npt.NDArray[np.int32], positions: npt.NDArray[np.int32]
    ) -> torch.Tensor:
        """Rows without top-k and top-p: the CDF runs over the whole vocabulary in the order of ids."""
        at = self._at(slots)
        weights = relative_weights(logits, self.state.temperature[at])
        return draw_by_id(cut_min_p(weights, self.state.min_p[at]), self._uniform(slots, positions))

    def _draw_truncated(
        self, logits: torch.Tensor, slots: npt.NDArray[np.int32], positions: npt.NDArray[np.int32]
    ) -> torch.Tensor:
        """Rows with top-k or top-p: decided among the best few wherever these hold all that is kept."""
        at, uniform = self._at(slots), self._uniform(slots, positions)
        temperature, min_p = self.state.temperature[at], self.state.min_p[at]
        top_k, top_p = self.state.top_k[at], self.state.top_p[at]
        weights = relative_weights(logits, temperature)
        tokens, complete = draw_among_best(weights, top_k, top_p, min_p, uniform)
        for row in (~complete).nonzero().flatten().tolist():
            kept = cut_min_p(
                truncate(weights[row], int(top_k[row]), float(top_p[row]))[None], min_p[row, None]
            )
            tokens[row] = draw_by_id(kept, uniform[row, None])[0]
        return tokens

    def _at(self, slots: npt.NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(slots.astype(np.int64)).to(self.state.device)

    def _uniform(self, slots: npt.NDArray[np.int32], positions: npt.NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(uniform(self.state.seeds[slots], positions)).to(self.state.device)


def grammar_first(masked: torch.Tensor, adjusted: torch.Tensor) -> torch.Tensor:
    """(n, vocab) logits with a grammar's mask, before and after everything else: what the grammar forbids stays
    forbidden, and a row in which the rest ruled out all that it allows is taken as it was."""
    adjusted = torch.where(masked == float("-inf"), float("-inf"), adjusted)
    nothing = adjusted.amax(-1, keepdim=True) <= UNWANTED
    return torch.where(nothing, masked, adjusted)


# ------------------------------------------------------------------------------------------------------ randomness


def uniform(
    seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int32], draw: int = 0
) -> npt.NDArray[np.float64]:
    """(n,) numbers in [0, 1) that depend on (seed, position, draw) alone.

    Two rounds of the SplitMix64 finaliser (Steele, Lea, Flood 2014) over seed and counter. The host knows both, so
    the device is only given the result.
    """
    counter = positions.astype(np.uint64) * np.uint64(256) + np.uint64(draw + 1)
    mixed = split_mix(split_mix(seeds) + counter * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def split_mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# ------------------------------------------------------------------------------------------------ rows of numbers


def blocks(x: torch.Tensor, fill: float) -> torch.Tensor:
    """(n, vocab) -> (n, blocks, BLOCK), the end filled up."""
    missing = -x.shape[1] % BLOCK
    return (F.pad(x, (0, missing), value=fill) if missing else x).view(len(x), -1, BLOCK)


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
    kth = best.gather(-1, (top_k - 1).clamp(0, num - 1)[:, None])
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
