"""How many drafts a request may have verified in its next step: the seam between scheduler and speculation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .arrays import Int32


class DraftLengths(Protocol):
    """Chooses draft lengths and learns from what became of them. Never blocks; all arrays int32."""

    def start(self, slot: int) -> None:
        """The slot got another request."""

    def lengths(self, slots: Int32, room: Int32, seconds: Callable[[int], float] | None) -> Int32:
        """(n,) how many drafts each of `slots` may have verified in the next step, at most `room` (n,).

        `seconds` predicts the time of a step with that many tokens of decodes; None while nothing was measured.
        """

    def observe(self, slots: Int32, drafted: Int32, accepted: Int32) -> None:
        """A step of `slots` verified `drafted` (n,) tokens, of which the first `accepted` (n,) were right."""
