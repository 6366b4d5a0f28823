"""Which drafts were right: those that would have been drawn in their place.

The target draws a token at every position of a row, each from the distribution that its own forward pass gave for it,
with the random number that belongs to (seed, position). A draft is accepted if it is the token drawn; the first that is
not is replaced by the one drawn, and what comes after it is void. For a drafter that names one token this is rejection
sampling (Leviathan et al., ICML 2023, algorithm 1; Chen et al., arXiv:2302.01318): there q is 1 at the draft d, so d is
accepted with probability min(1, p(d) / q(d)) = p(d), and otherwise the token comes from max(0, p - q), normalised,
which is p without d. A draw x from p does both at once. So the output has the target's distribution, and more: it is
token for token what comes without drafts, whatever the drafter and the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Int32: TypeAlias = npt.NDArray[np.int32]
Bool: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Drafts:
    """Of n rows: row i has counts[i] drafts (perhaps none) in tokens (sum counts,), one row's after the other's."""

    counts: Int32
    tokens: Int32

    def cut(self, counts: Int32) -> Drafts:
        """The first `counts` (n,) drafts of each row."""
        if np.array_equal(counts, self.counts):
            return self
        return Drafts(counts, self.tokens[offsets(self.counts) < np.repeat(counts, self.counts)])

    def following(self) -> Int32:
        """(n + sum counts,) for each token that the rows draw the draft of its place; -1 for the last of each row."""
        each = self.counts + np.int32(1)
        after = np.full(self.counts.size + self.tokens.size, -1, np.int32)
        after[offsets(each) < np.repeat(self.counts, each)] = self.tokens
        return after

    def take(self, rows: npt.NDArray[np.intp]) -> Drafts:
        """Those of `rows` (m,), in that order."""
        begins = np.cumsum(self.counts, dtype=np.int32) - self.counts
        counts = self.counts[rows]
        return Drafts(counts, self.tokens[np.repeat(begins[rows], counts) + offsets(counts)])


def offsets(counts: Int32) -> Int32:
    """(sum counts,) 0 .. counts[i] - 1 for each i."""
    ends = np.cumsum(counts, dtype=np.int32)
    total = int(ends[-1]) if ends.size else 0
    return np.arange(total, dtype=np.int32) - np.repeat(ends - counts, counts)


def num_right(drawn: Int32, drafts: Drafts) -> Int32:
    """(n,) how many drafts of each row are accepted; `drawn` has counts[i] + 1 tokens for row i, in order."""
    longest = int(drafts.counts.max()) if drafts.counts.size else 0
    if not longest:
        return np.zeros(drafts.counts.size, np.int32)
    at = offsets(drafts.counts)
    rows = np.repeat(np.arange(drafts.counts.size), drafts.counts)
    is_compared = offsets(drafts.counts + np.int32(1)) < np.repeat(drafts.counts, drafts.counts + 1)
    right = np.zeros((drafts.counts.size, longest), np.bool_)
    right[rows, at] = drawn[is_compared] == drafts.tokens
    accepted: Int32 = np.logical_and.accumulate(right, axis=1).sum(axis=1, dtype=np.int32)
    return accepted


def kept(counts: Int32, accepted: Int32) -> Bool:
    """(sum counts + n,) which drawn tokens of rows with `counts` (n,) drafts remain: the accepted ones and one more."""
    return offsets(counts + np.int32(1)) <= np.repeat(accepted, counts + np.int32(1))
