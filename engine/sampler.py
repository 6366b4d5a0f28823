"""From logits to the next token of every row: what a request asks for is applied to its logits, then a token is drawn.

The order is that of the field (transformers' processors, vLLM up to the place of min-p): repetition penalty,
frequency and presence penalty, logit bias, allowed_token_ids and bad_words, min_tokens (stop ids forbidden),
temperature, top-k, top-p over what top-k left, min-p; then one draw. Temperature 0 takes the most likely token after
min_tokens. Truncation is by threshold: tokens that tie with the last one kept are kept as well, so the result does
not depend on how a sort breaks ties. A grammar's mask is on the logits already, and it wins over all of this.

Everything from temperature on is `kernels.sampling`. Draws use the inverse CDF and one uniform number hashed from
(seed, position). Every row is computed by operations that treat it the same in any batch, so a request's tokens do
not depend on its company.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ..kernels.sampling.interface import Float64, Sampling
from ..kernels.staged import on_device
from ..scheduler.arrays import Int32
from ..spec.verify import Drafts
from .sampling_state import SamplingState
from .token_rules import UNWANTED


class Sampler:
    def __init__(self, state: SamplingState, kernels: Sampling) -> None:
        self.state = state
        self._kernels = kernels

    def prepare(self, slots: Int32, positions: Int32) -> Float64 | None:
        """The uniform numbers (n,) that a `sample` of these rows takes; None where it takes none."""
        return None if self.state.plain[slots].all() else self._uniform(slots, positions)

    def sample(
        self, logits: torch.Tensor, slots: Int32, positions: Int32, uniform: Float64 | None = None
    ) -> torch.Tensor:
        """logits (n, vocab_size) of `slots` (n,), to draw the tokens at `positions` (n,): (n,) int32 tokens. The
        logits are left as they are. `uniform` is what `prepare` gave, if that was asked."""
        state = self.state
        if uniform is None:
            if state.plain[slots].all():
                return self._kernels.argmax(logits)
            uniform = self._uniform(slots, positions)
        slots, positions = np.asanyarray(slots, order="C"), np.asanyarray(positions, order="C")
        changed = state.changed[slots] | (positions < state.min_length[slots])
        rows = np.flatnonzero(changed)
        if not rows.size:
            return self._draw(logits, slots, uniform)
        at = on_device(rows, logits.device)
        mine = slots[rows]
        adjusted = self._adjusted(logits.index_select(0, at), mine, positions[rows])
        tokens = self._draw(adjusted, mine, uniform[rows])
        self._follow(mine, tokens)
        others = np.flatnonzero(~changed).astype(np.int32)
        if not others.size:
            return tokens
        all_tokens = torch.empty(len(slots), dtype=torch.int32, device=logits.device)
        all_tokens[at] = tokens
        drawn = self._draw(logits, slots[others], uniform[others], others)
        all_tokens[on_device(others, logits.device)] = drawn
        return all_tokens

    def sample_drafted(
        self,
        logits: torch.Tensor,
        slots: Int32,
        positions: Int32,
        uniform: Float64 | None,
        drafts: Drafts,
    ) -> torch.Tensor:
        """As `sample`, of rows that draw counts[i] + 1 tokens each. Where what is drawn depends on the tokens before,
        a row draws one after the other, as long as its drafts are right; what it does not come to is -1."""
        follows = self.state.follows[slots]
        begins = np.cumsum(drafts.counts + 1) - drafts.counts - 1
        runs = np.flatnonzero(follows[begins] & (drafts.counts > 0))
        if not runs.size:
            return self.sample(logits, slots, positions, uniform)
        tokens = torch.full((len(slots),), -1, dtype=torch.int32, device=logits.device)
        first_drafts = np.cumsum(drafts.counts) - drafts.counts
        is_first = np.zeros(len(slots), np.bool_)
        is_first[begins] = True
        now = np.flatnonzero(is_first | ~follows)
        for drawn in range(1, int(drafts.counts[runs].max()) + 2):
            at = on_device(now, logits.device)
            some = None if uniform is None else uniform[now]
            tokens[at] = self.sample(logits.index_select(0, at), slots[now], positions[now], some)
            runs = runs[drafts.counts[runs] >= drawn]
            if not runs.size:
                break
            latest = begins[runs] + drawn - 1
            right = (
                tokens[on_device(latest, logits.device)].cpu().numpy()
                == (drafts.tokens[first_drafts[runs] + drawn - 1])
            )
            runs = runs[right]
            if not runs.size:
                break
            now = begins[runs] + drawn
        return tokens

    def _draw(
        self, logits: torch.Tensor, slots: Int32, uniform: Float64, rows: Int32 | None = None
    ) -> torch.Tensor:
        """(n,) int32 tokens of `slots`, whose logits are at `rows`."""
        return self._kernels.sample(logits, self.state.drawing, slots, uniform, rows)

    def _adjusted(self, given: torch.Tensor, slots: Int32, positions: Int32) -> torch.Tensor:
        """Penalties, bias, token rules and min_tokens of rows `given` (n, vocab_size): a float32 copy."""
        state = self.state
        logits = given.to(torch.float32, copy=True)
        penalised = np.flatnonzero(state.penalised[slots])
        if penalised.size == len(slots):
            state.penalise(self._kernels, logits, slots)
        elif penalised.size:
            at = on_device(penalised, logits.device)
            part = logits[at]
            state.penalise(self._kernels, part, slots[penalised])
            logits[at] = part
        for row in np.flatnonzero(state.biased[slots]).tolist():
            state.add_bias(logits[row], int(slots[row]))
        for row in np.flatnonzero(state.ruled[slots]).tolist():
            state.rule_out(logits[row], int(slots[row]))
        short = positions < state.min_length[slots]
        for row in np.flatnonzero(short).tolist():
            state.forbid_stop(logits[row], int(slots[row]))
        torn = np.flatnonzero(state.constrained[slots] & (state.ruled[slots] | short))
        if torn.size:
            at = on_device(torn, logits.device)
            logits[at] = grammar_first(given[at].float(), logits[at])
        return logits

    def _follow(self, slots: Int32, tokens: torch.Tensor) -> None:
        """`slots` sampled `tokens` (n,): what the next one depends on."""
        state = self.state
        penalised = np.flatnonzero(state.penalised[slots])
        if penalised.size:
            state.count(slots[penalised], tokens[on_device(penalised, tokens.device)])
        ruled = np.flatnonzero(state.ruled[slots])
        if ruled.size:
            state.follow(slots[ruled].tolist(), tokens[on_device(ruled, tokens.device)])

    def _uniform(self, slots: Int32, positions: Int32) -> npt.NDArray[np.float64]:
        return uniform(self.state.seeds[slots], positions)


def grammar_first(masked: torch.Tensor, adjusted: torch.Tensor) -> torch.Tensor:
    """(n, vocab) logits with a grammar's mask, before and after everything else: what the grammar forbids stays
    forbidden, and a row in which the rest ruled out all that it allows is taken as it was."""
    adjusted = torch.where(masked == float("-inf"), float("-inf"), adjusted)
    nothing = adjusted.amax(-1, keepdim=True) <= UNWANTED
    return torch.where(nothing, masked, adjusted)


# ------------------------------------------------------------------------------------------------------ randomness


def uniform(seeds: npt.NDArray[np.uint64], positions: Int32, draw: int = 0) -> npt.NDArray[np.float64]:
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
