"""Between a sequence and one choice of a chat: the text, taken apart into reasoning, content and tool calls."""

from __future__ import annotations

from typing import Protocol

from ...scheduler.messages import FinishReason
from ..parsing.combine import AnswerParser
from ..parsing.events import Event
from ..requests.sequence import Failure, Sequence, Sink, TokenLogprob


class ChatSink(Sink, Protocol):
    """One choice of a chat. Text comes by `text` where nothing takes it apart, by `events` where something does."""

    def events(self, events: list[Event], logprobs: list[TokenLogprob] | None) -> None:
        """New parts (maybe none yet) and, if asked for, the log probabilities of the tokens they were made from."""


class ParsedSink:
    """A sink that takes the text apart for another, and hands it on when `interval` tokens came since the last time."""

    def __init__(self, inner: ChatSink, parser: AnswerParser, *, interval: int = 1) -> None:
        self._inner = inner
        self._parser = parser
        self._interval = interval
        self._next = 0  # tokens at which events go on
        self._events: list[Event] = []
        self._entries: list[TokenLogprob] | None = None
        self._sequence: Sequence | None = None

    def follow(self, sequence: Sequence) -> None:
        """The sequence whose sink this is; its thinking is counted."""
        self._sequence = sequence
        if self._parser.reasons:
            sequence.reasoning_tokens = 0
            sequence.hand_on_each_token()

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        self._inner.prompt_logprobs(entries)

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None:
        sequence = self._sequence
        assert sequence is not None
        thought = self._parser.thinking
        self._events += self._parser.push(text)
        if thought or self._parser.thinking:
            sequence.reasoning_tokens = len(sequence.output)
        if logprobs is not None:
            self._entries = [*(self._entries or ()), *logprobs]
        if len(sequence.output) >= self._next and (self._events or self._entries):
            self._next = len(sequence.output) + self._interval
            self._hand_on()

    def finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        if self._parser.thinking and self._sequence is not None:
            self._sequence.reasoning_tokens = len(self._sequence.output)
        self._events += self._parser.finish()
        if self._events or self._entries:
            self._hand_on()
        self._inner.finish(reason, stop_reason)

    def fail(self, failure: Failure) -> None:
        self._inner.fail(failure)

    def _hand_on(self) -> None:
        events, entries = self._events, self._entries
        self._events, self._entries = [], None
        self._inner.events(events, entries)
