"""What the link needs of anything that an engine works on, whether it is continued or only read."""

from __future__ import annotations

from typing import Protocol

from ...scheduler.messages import Finish, FirstToken, Submit, TokenLogprobs
from .sequence import Failure


class Outstanding(Protocol):
    """One submission in flight: it can be submitted again at any moment, and ends once."""

    request_id: int
    over: bool
    accepted: bool  # an engine has had it: a full queue is no reason any more to refuse it
    first_at: float  # when its first output came, 0.0 before

    def submit_message(self) -> Submit:
        """All that an engine needs to work on it, now."""

    def restart(self) -> None:
        """The engine that had it is gone."""

    def start(self, first: FirstToken, now: float) -> None:
        """Its first output comes with this step."""

    def take(
        self, tokens: list[int], now: float, finish: Finish | None, logprobs: TokenLogprobs | None
    ) -> bool:
        """What a step brought; True if it is over for us though the engine goes on."""

    def fail(self, failure: Failure) -> None:
        """It ends without its answer."""

    def cancel(self) -> None:
        """Nobody waits for it any more."""
