"""What is kept of each request, and how it is filled in while its answer streams in (the client's hot path)."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter

import msgspec

from ..client.chunks import DONE, Usage, decode_chunk, error_text
from ..client.http import EventParser

BAD_FINISH = ("error", "abort")


@dataclass(slots=True)
class Record:
    """One request. Times are seconds of `time.perf_counter`; `error` None means the answer came whole."""

    scheduled: float  # when it should have been sent
    sent: float = 0.0
    first: float | None = None  # first generated token
    last: float | None = None  # last generated token
    end: float = 0.0  # end of the answer
    gaps: array[float] = field(default_factory=lambda: array("d"))  # seconds between chunks that carry tokens
    num_chunks: int = 0  # chunks that carry tokens
    prompt_tokens: int | None = None
    output_tokens: int = 0
    output_counted: bool = False  # output_tokens are counted chunks: the server sent no usage
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None  # its kind, such as "HTTP 429"
    error_message: str = ""

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None below two tokens."""
        if self.first is None or self.last is None or self.output_tokens < 2:
            return None
        return (self.last - self.first) / (self.output_tokens - 1)


@dataclass(slots=True)
class Live:
    """What a running load shows and counts as it goes."""

    in_flight: int = 0
    peak_in_flight: int = 0
    chunks: int = 0
    finished: int = 0
    failed: int = 0


class StreamRecorder:
    """The `Receiver` of one streamed answer: takes the time of every chunk that carries tokens.

    `keep_text` also collects the answer, for conversations in which it is the next turn's history.
    """

    __slots__ = (
        "_events",
        "_finished",
        "_first_choice",
        "_keep_text",
        "_last",
        "_live",
        "_other",
        "_record",
        "_status",
        "_text",
        "_usage",
    )

    def __init__(self, record: Record, live: Live, keep_text: bool = False) -> None:
        self._record = record
        self._live = live
        self._keep_text = keep_text
        self._events = EventParser()
        self._status = 0
        self._other = b""  # a body that is not an event stream
        self._text: list[str] = []
        self._usage: Usage | None = None
        self._finished = False  # [DONE] came
        self._first_choice: float | None = None
        self._last = 0.0

    @property
    def text(self) -> str:
        """The answer so far (with `keep_text`)."""
        return "".join(self._text)

    def on_head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self._status = status
        if status == 200 and not headers.get(b"content-type", b"text/event-stream").startswith(
            b"text/event-stream"
        ):
            self._status = -1

    def on_body(self, data: bytes) -> None:
        now = perf_counter()
        if self._status != 200:
            self._other += data
            return
        record = self._record
        for event in self._events.feed(data):
            if event == DONE:
                self._finished = True
                record.end = now
                continue
            if record.error is not None:
                continue
            try:
                chunk = decode_chunk(event)
            except msgspec.DecodeError as error:
                self._fail("bad chunk", f"{error}: {event[:100]!r}")
                continue
            if chunk.choices:
                choice = chunk.choices[0]
                if choice.says_something:
                    if record.num_chunks:
                        record.gaps.append(now - self._last)
                    else:
                        record.first = now
                    self._last = now
                    record.num_chunks += 1
                    self._live.chunks += 1
                    if self._keep_text:
                        self._text.append(choice.text or (choice.delta and choice.delta.content) or "")
                elif self._first_choice is None:
                    self._first_choice = now
                if choice.finish_reason is not None:
                    record.finish_reason = choice.finish_reason
                    record.end = now
            if chunk.usage is not None:
                self._usage = chunk.usage
            if chunk.error is not None:
                self._fail("error event", error_text(chunk.error))

    def _fail(self, kind: str, message: str) -> None:
        if self._record.error is None:
            self._record.error, self._record.error_message = kind, message

    def failed(self, kind: str, message: str) -> None:
        """The exchange itself ended in an error, after whatever has been received."""
        self._record.end = perf_counter()
        self._fail(kind, message)

    def complete(self) -> None:
        """The response is over: settle the record."""
        record = self._record
        if self._status == -1:
            self._fail("not a stream", error_text(self._other))
        elif self._status != 200:
            self._fail(f"HTTP {self._status}", error_text(self._other))
        elif record.finish_reason in BAD_FINISH:
            self._fail(f"finish_reason {record.finish_reason}", "the server gave the request up")
        elif record.finish_reason is None and not self._finished:
            self._fail("truncated", "the stream ended without a finish_reason and without [DONE]")
        record.end = record.end or perf_counter()
        record.last = self._last if record.num_chunks else None
        usage = self._usage
        if usage is None or usage.completion_tokens is None:
            record.output_tokens, record.output_counted = record.num_chunks, True
        else:
            record.output_tokens = usage.completion_tokens
        if usage is not None:
            record.cached_tokens = usage.cached_tokens
            if usage.prompt_tokens is not None:
                record.prompt_tokens = usage.prompt_tokens
        if record.first is None and record.output_tokens:
            # Tokens without visible text (half a character, say): the first chunk that came is when they came.
            record.first, record.last = self._first_choice or record.end, record.end
