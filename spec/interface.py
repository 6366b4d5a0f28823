"""What a drafter is: something that proposes the tokens that may come next, for the model to verify in one pass.

A drafter on the host proposes from the tokens that are known there (`HostDrafter`). One that is a model runs on the
device, between the steps of the target, and is part of the engine's program (`engine/draft_models/`).
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Int32: TypeAlias = npt.NDArray[np.int32]


class Drafter(Protocol):
    """One per engine; holds the state of every slot. A drafter is only told tokens that are final.

    Arrays are int32, one-dimensional and contiguous, n rows each a different started slot. Tokens of several rows lie
    one row's after the other's. Not for several threads at once.
    """

    num_sources: int  # ways in which a draft comes about, some surer than others; see `sources`

    def start(
        self,
        slot: int,
        tokens: Int32,
        prediction: Int32 | None = None,
        *,
        num_prompt_tokens: int | None = None,
        cache_salt: str = "",
    ) -> None:
        """A request came into the slot with tokens (t,), the first `num_prompt_tokens` of them prompt (None: all).

        `prediction` (p,) is what its user expects as the output. `cache_salt` divides what requests may learn from each
        other. Returns at once; what takes longer is done by the next calls, a part at a time.
        """

    def extend(self, slots: Int32, counts: Int32, tokens: Int32, verified: Int32 | None = None) -> None:
        """Row i got counts[i] new output tokens, out of tokens (sum counts,).

        verified[i] is how many tokens of its latest draft went through the model; None: all that were proposed.
        """

    def predicted(self, slots: Int32) -> tuple[Int32, Int32]:
        """Since each slot's start: output tokens that were as its user predicted (n,), and draft tokens from the
        prediction that the model looked at and did not say (n,)."""

    def stop(self, slot: int) -> None:
        """The request left the slot. Nothing happens if none was there."""


class HostDrafter(Drafter, Protocol):
    """Proposes from tokens alone; what it proposes may be cut short."""

    def propose(self, slots: Int32, max_lens: Int32) -> tuple[Int32, Int32]:
        """(counts (n,), tokens (sum counts,)): a draft of at most max_lens[i] tokens for row i, often none."""

    def sources(self) -> Int32:
        """(n,) of the latest `propose`: how each row's draft came about, 0 .. num_sources - 1."""
