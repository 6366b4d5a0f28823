"""The state of one prompt in flight that is read, not continued."""

from __future__ import annotations

import time
from array import array
from typing import Protocol

from ...scheduler.messages import Finish, FirstToken, PoolingParams, SamplingParams, Submit, TokenLogprobs
from .sequence import Failure

NOTHING_DRAWN = SamplingParams(max_tokens=0)


class Owner(Protocol):
    """Who waits for prompts."""

    def ended(self, prompt: PooledPrompt, now: float) -> None:
        """It has its values."""

    def asks_again(self, prompt: PooledPrompt, failure: Failure) -> bool:
        """True if the owner will submit it once more: then it has not failed."""

    def failed(self, failure: Failure) -> None:
        """It will never have its values."""


class PooledPrompt:
    """One prompt and, in the end, `values`: raw little-endian float32."""

    def __init__(
        self,
        *,
        request_id: int,
        prompt: array[int],
        params: PoolingParams,
        owner: Owner,
        priority: int = 0,
        cache_salt: str = "",
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.params = params
        self._owner = owner
        self.priority = priority
        self.cache_salt = cache_salt
        self.values = b""
        self.over = False
        self.accepted = False
        self.first_at = 0.0
        self.arrival = time.monotonic()
        self.first: FirstToken | None = None

    @property
    def cached_tokens(self) -> int:
        return self.first.cached_tokens if self.first is not None else 0

    def submit_message(self) -> Submit:
        """The same at any time: nothing comes before all of it."""
        return Submit(
            request_id=self.request_id,
            tokens=self.prompt.tobytes(),
            num_prompt_tokens=len(self.prompt),
            sampling=NOTHING_DRAWN,
            pooling=self.params,
            priority=self.priority,
            cache_salt=self.cache_salt,
        )

    def restart(self) -> None:
        """Nothing has been delivered that could be half."""

    def start(self, first: FirstToken, now: float) -> None:
        """Times and cached tokens; they come with the result."""
        self.first = first
        self.first_at = now

    def take_values(self, values: bytes) -> None:
        self.values = values

    def take(
        self, tokens: list[int], now: float, finish: Finish | None, logprobs: TokenLogprobs | None
    ) -> bool:
        """The end, after `take_values`."""
        if finish is None:
            return False
        if finish.reason == "error" or not self.values:
            self.fail(Failure(code="internal", message="the engine could not read this prompt"))
            return False
        self.over = True
        self._owner.ended(self, now)
        return False

    def fail(self, failure: Failure) -> None:
        if not self.over and not self._owner.asks_again(self, failure):
            self.over = True
            self._owner.failed(failure)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.over = True
