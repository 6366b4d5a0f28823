"""What a drafter that is a model consists of: modules, each of which guesses one token further.

A module's entry at position p joins the embedding of token p with what is known of position p - 1: the target's states
there, for the first module, or what the module before it gave there. Its output stands for p, and its most likely token
is the draft of p + 1. Published descriptions count entries from the state, p - 1; here they lie where their token lies,
so that the pages of a prefix hold exactly the entries that its tokens decide, and pages may be shared. Position 0 has
no entry (in module m, none of the first m + 1), which is `AttentionSpec.first`; rotary tables are moved by as much.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...kernels.attention.interface import AttentionBackend
from ...kernels.interface import Ops
from ..batch import ForwardBatch, PagePlaces


class DraftModule(ABC):
    """T entries at once. `features` (T, feature_size) are of the positions before, and may be overwritten.

    `blank` (T, 1) bool, where given, says for which entries the embedding is zeros.
    """

    attention: AttentionBackend  # with the keys of this module alone
    blanks_first: bool = False  # the embedding of the first entry of all is zeros

    @abstractmethod
    def forward(
        self, batch: ForwardBatch, features: torch.Tensor, blank: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(features of these positions for the next entries, states for the head), (T, ...) each. Keys and values are
        in the pages."""

    @abstractmethod
    def write(
        self,
        batch: ForwardBatch,
        features: torch.Tensor,
        places: PagePlaces,
        blank: torch.Tensor | None = None,
    ) -> None:
        """Only put the entries' keys and values to their `places`."""


@dataclass(frozen=True, slots=True)
class DraftModel:
    """`modules[i]` makes the i-th token of a draft, the last one all further ones.

    `fuse` makes features (T, feature_size) of what was `captured` of the target: (T, n * hidden_size), or its states
    after the final norm if that is None. `target_ids` (draft vocabulary, 1) int32 are the target's ids of the drafter's
    tokens; None: the same.
    """

    modules: Sequence[DraftModule]
    heads: Sequence[Callable[[torch.Tensor], torch.Tensor]]  # of states (T, hidden_size), one per module
    feature_size: int
    dtype: torch.dtype
    ops: Ops
    captured: torch.Tensor | None = None
    fuse: Callable[[torch.Tensor], torch.Tensor] = lambda states: states
    target_ids: torch.Tensor | None = None
    reads_last: bool = True  # the target's last layer is needed for all tokens of a prompt

    def tokens(self, module: int, states: torch.Tensor) -> torch.Tensor:
        """The most likely tokens, int32 (T,), of states (T, hidden_size) for the head."""
        best = self.ops.sampling.argmax(self.heads[module](states))
        return best if self.target_ids is None else self.ops.embedding(self.target_ids, best).view(-1)

    def features(self, hidden: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Of the first `num_tokens` of a step that gave `hidden` (T, hidden_size)."""
        return self.fuse((hidden if self.captured is None else self.captured)[:num_tokens])


@dataclass(frozen=True, slots=True)
class DraftShape:
    """What a drafter takes of every page: keys and values of each module, and what it needs to go on behind it."""

    num_modules: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    feature_size: int
    has_values: bool = True  # else keys are their own values

    def page_bytes(self, page_size: int, kv_dtype: torch.dtype, feature_dtype: torch.dtype) -> int:
        numbers = (2 if self.has_values else 1) * page_size * self.num_kv_heads * self.head_dim
        return self.num_modules * (numbers * kv_dtype.itemsize + self.feature_size * feature_dtype.itemsize)


def moved(table: torch.Tensor, by: int) -> torch.Tensor:
    """A rotary table (length, dim) that gives position p the angles of p - by, or of 0."""
    return torch.cat((table[:1].expand(by, -1), table[: len(table) - by])).contiguous()
