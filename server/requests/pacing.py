"""`stream_interval`: text handed on every so many tokens, so that a stream costs fewer and larger events."""

from __future__ import annotations

from array import array

from ...scheduler.messages import FinishReason
from .sequence import Failure, Sink, TokenLogprob


class Paced:
    """A sink before another. The first text goes on at once, later ones when `interval` tokens came since.

    `output` is the sequence's own array of tokens, set before the first text comes.
    """

    def __init__(self, inner: Sink, interval: int) -> None:
        self._inner = inner
        self._interval = interval
        self._texts: list[str] = []
        self._entries: list[TokenLogprob] | None = None
        self._next = 0  # tokens at which text goes on
        self.output: array[int] = array("i")

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        self._inner.prompt_logprobs(entries)

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None:
        self._texts.append(text)
        if logprobs is not None:
            self._entries = [*(self._entries or ()), *logprobs]
        if len(self.output) >= self._next:
            self._next = len(self.output) + self._interval
            self._hand_on()

    def finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        self._hand_on()
        self._inner.finish(reason, stop_reason)

    def fail(self, failure: Failure) -> None:
        self._inner.fail(failure)

    def _hand_on(self) -> None:
        text, entries = "".join(self._texts), self._entries
        self._texts, self._entries = [], None
        if text or entries:
            self._inner.text(text, entries)
