"""Streamed answers: the chunks of both completion endpoints, made from prepared bytes, and their order.

Chat: role chunk, deltas, finish chunk; completions: text chunks, the last with the finish reason. Then, if asked
for, a chunk without choices that has the usage or the request's metrics; then `data: [DONE]`. An error after the first
event is an event too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from ...scheduler.messages import FinishReason
from ..http.events import DONE, PING, WRITE, EventStream
from ..metrics.catalogue import Metrics
from ..parsing.events import CallArguments, CallStart, Content, Event, Reasoning, merged
from ..requests.generation import ClientGone, Generation, GenerationFailed
from ..requests.link import EngineLink
from ..requests.sequence import Failure, TokenLogprob
from .chat_calls import ChatCalls
from .errors import error_body, from_failure
from .logprobs import CompletionLogprobs
from .protocol import GenerationRequest
from .request_metrics import request_metrics

encode = msgspec.json.Encoder().encode
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every chunk and every whole answer of a request begin with."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    service_tier: str | None = None


class EventGeneration(Generation):
    """A generation whose answer is a stream of events; `ping` is what is written into a long silence."""

    def __init__(
        self,
        link: EngineLink,
        metrics: Metrics,
        choices_per_prompt: int,
        *,
        keep_alive_s: float,
        ping: bytes = PING,
    ) -> None:
        super().__init__(link, metrics, choices_per_prompt)
        self.events = EventStream(keep_alive_s, ping)
        self.started = False  # the client has been told 200


class StreamedGeneration(EventGeneration):
    """A generation whose choices write chunks of completions."""

    def __init__(
        self,
        link: EngineLink,
        metrics: Metrics,
        choices_per_prompt: int,
        *,
        envelope: Envelope,
        request: GenerationRequest,
        keep_alive_s: float,
    ) -> None:
        super().__init__(link, metrics, choices_per_prompt, keep_alive_s=keep_alive_s)
        options = request.stream_options
        self._include_usage = bool(options and options.include_usage)
        self._with_metrics = bool(request.return_metrics)
        self._continuous = bool(options and options.continuous_usage_stats)
        self.return_token_ids = bool(request.return_token_ids)
        self._once = b""
        self.head = b"data: " + encode(envelope)[:-1] + b',"choices":['
        self._plain_end = b',"usage":null}\n\n' if self._include_usage else b"}\n\n"
        self.on_error_finish: list[Callable[[], None]] = []

    @property
    def fixed_end(self) -> bytes | None:
        """How every chunk ends behind its choices; None if that changes with each."""
        return None if self._continuous else b"]" + self._plain_end

    def end(self) -> bytes:
        once, self._once = self._once, b""
        if self._continuous:
            return b"]" + once + b',"usage":' + encode(self.usage().as_dict()) + b"}\n\n"
        return b"]" + once + self._plain_end

    def name_prompt(self) -> None:
        """The next chunk carries the prompt's tokens, if the client wants token ids."""
        if self.return_token_ids:
            self._once = b',"prompt_token_ids":' + encode(self.sequences[0].prompt.tolist())

    def _last_fields(self) -> bytes:
        """What the chunk without choices tells."""
        fields = b',"usage":' + encode(self.usage().as_dict()) if self._include_usage else b""
        if self._with_metrics:
            fields += b',"metrics":' + encode(request_metrics(self.sequences))
        return fields

    def on_stop(self, error: GenerationFailed | ClientGone | None) -> None:
        if isinstance(error, GenerationFailed) and self.started:
            for finish in self.on_error_finish:
                finish()
            self.events.push(b"data: " + error_body(from_failure(error.failure)) + b"\n\n" + DONE)
            self.events.close()
        elif error is not None:
            self.events.close(error)
        else:
            if self._include_usage or self._with_metrics:
                self.events.push(self.head + b"]" + self._last_fields() + b"}\n\n")
            self.events.push(DONE)
            self.events.close()


class StreamedChoice(ABC):
    """One choice of a stream: a sink whose texts become chunks `head index open text close end`."""

    def __init__(self, generation: StreamedGeneration, index: int) -> None:
        self._generation = generation
        self._push = generation.events.push
        self._index = index
        self._finished = False
        self._tokens_told = 0
        generation.on_error_finish.append(self._finish_with_error)
        end = generation.fixed_end
        self._head = generation.head + b'{"index":%d,' % index + self.text_open
        self._tail = None if end is None else self.text_close + end

    text_open = b""
    text_close = b""

    def _end(self) -> bytes:
        return self._generation.end()

    def _write(self, fields: bytes, *, tokens: bool = True) -> None:
        """A chunk with other fields than a plain text; without `tokens` it stands for none of the output's."""
        if tokens and self._generation.return_token_ids:
            fields += self._token_ids()
        self._push(self._generation.head + b'{"index":%d,' % self._index + fields + b"}" + self._end())

    def _token_ids(self) -> bytes:
        """The tokens since the last chunk."""
        output = self._generation.sequences[self._index].output
        new = output[self._tokens_told :].tolist() if self._generation.counts_output else []
        self._tokens_told = len(output)
        return b',"token_ids":' + encode(new)

    def _write_text(self, text: str, *, tokens: bool = True) -> None:
        if self._generation.return_token_ids:
            self._write(self.text_open + encode(text) + self.text_close[:-1], tokens=tokens)
            return
        tail = self._tail
        self._push(self._head + encode(text) + (tail if tail is not None else self.text_close + self._end()))

    def fail(self, failure: Failure) -> None:
        self._generation.sequence_failed(failure)

    def _finish_with_error(self) -> None:
        if not self._finished:
            self._write_finish("error", None)

    @abstractmethod
    def _write_finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        """The chunk that ends the choice, in its endpoint's shape."""

    def finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        self._finished = True
        self._write_finish(reason, stop_reason)
        self._generation.sequence_ended()


class ChatStreamedChoice(StreamedChoice):
    """Chunks of /v1/chat/completions. Every part of an answer has a chunk of its own."""

    text_open = b'"delta":{"content":'
    text_close = b'},"logprobs":null,"finish_reason":null}'

    def __init__(
        self,
        generation: StreamedGeneration,
        index: int,
        describe: Callable[[list[TokenLogprob]], list[dict[str, Any]]],
        calls: ChatCalls | None = None,
        echo: str = "",
    ) -> None:
        super().__init__(generation, index)
        self._describe = describe
        self._calls = calls or ChatCalls()
        self._echo = echo
        self._opened = False

    def _open(self, content: bytes = b'""') -> None:
        self._opened = True
        if self._index == 0:
            self._generation.name_prompt()
        self._write(
            b'"delta":{"role":"assistant","content":%b},"logprobs":null,"finish_reason":null' % content,
            tokens=False,
        )
        if self._echo:
            self._write_text(self._echo, tokens=False)

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        raise AssertionError("chat never asks for them")

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None:
        if not self._opened:
            self._open()
        if logprobs:
            content = encode({"content": self._describe(logprobs), "refusal": None})
            self._write(self.text_open + encode(text) + b'},"logprobs":' + content + b',"finish_reason":null')
        else:
            self._write_text(text)

    def events(self, events: list[Event], logprobs: list[TokenLogprob] | None) -> None:
        """A chunk for each; the log probabilities go with the first, or with an empty delta if there is none."""
        described = b"null"
        if logprobs:
            described = encode({"content": self._describe(logprobs), "refusal": None})
        deltas = [self._delta(event) for event in merged(events)] or [b"{}"]
        if not self._opened:
            # As OpenAI does: null says that no content need come.
            self._open(b'""' if deltas[0].startswith(b'{"content"') else b"null")
        for delta in deltas:
            self._write(b'"delta":' + delta + b',"logprobs":' + described + b',"finish_reason":null')
            described = b"null"

    def _delta(self, event: Event) -> bytes:
        match event:
            case Content(text):
                return encode({"content": text})
            case Reasoning(text):
                return encode({"reasoning_content": text, "reasoning": text})
            case CallStart():
                return encode({"tool_calls": [self._calls.start(event)]})
            case CallArguments():
                return encode({"tool_calls": [self._calls.arguments(event)]})

    def _write_finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        if not self._opened:
            self._open()
        ending = (encode(self._calls.finish_reason(reason)), encode(stop_reason), encode(stop_reason))
        self._write(
            b'"delta":{},"logprobs":null,"finish_reason":%b,"stop_reason":%b,"matched_stop":%b' % ending
        )


class CompletionStreamedChoice(StreamedChoice):
    """Chunks of /v1/completions; with `echo` the prompt is the first text."""

    text_open = b'"text":'
    text_close = b',"logprobs":null,"finish_reason":null,"stop_reason":null}'

    def __init__(
        self,
        generation: StreamedGeneration,
        index: int,
        *,
        echo: str | None,
        hide_output: bool,
        logprobs: CompletionLogprobs | None,
    ) -> None:
        super().__init__(generation, index)
        self._echo = echo
        self._hide_output = hide_output
        self._logprobs = logprobs

    def _token_ids(self) -> bytes:
        """Before the first of them, those of the choice's prompt."""
        if self._tokens_told:
            return super()._token_ids()
        prompt = self._generation.sequences[self._index].prompt
        return b',"prompt_token_ids":' + encode(prompt.tolist()) + super()._token_ids()

    def _write_described(self, text: str, described: dict[str, Any], *, tokens: bool = True) -> None:
        tail = b',"logprobs":' + encode(described) + b',"finish_reason":null,"stop_reason":null'
        self._write(self.text_open + encode(text) + tail, tokens=tokens)

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        assert self._logprobs is not None
        self._write_described(self._echo or "", self._logprobs.prompt(entries), tokens=False)
        self._echo = None

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None:
        self._write_echo()
        if self._hide_output:
            return
        if logprobs and self._logprobs is not None:
            self._write_described(text, self._logprobs.output(logprobs))
        else:
            self._write_text(text)

    def _write_echo(self) -> None:
        """The prompt, if it has not come with its log probabilities (one of a single token has none)."""
        if self._echo is not None and self._logprobs is not None:
            self.prompt_logprobs([])
        elif self._echo is not None:
            self._write_text(self._echo, tokens=False)
            self._echo = None

    def _write_finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        self._write_echo()
        if self._hide_output:
            reason, stop_reason = "length", None
        ending = (encode(reason), encode(stop_reason), encode(stop_reason))
        self._write(
            b'"text":"","logprobs":null,"finish_reason":%b,"stop_reason":%b,"matched_stop":%b' % ending
        )


async def send_stream(
    generation: EventGeneration, scope: Scope, receive: Receive, send: Send, *, max_tokens: int
) -> None:
    """Run it and write its events. Status and headers wait for the first of them: a refusal is still a plain error."""
    events = generation.events
    try:
        async with generation.running(receive, max_tokens=max_tokens):
            data = await events.read()
            generation.started = True
            generation.accepted()
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            events.write_through(scope.get(WRITE))
            while not events.ended:
                await send({"type": "http.response.body", "body": data, "more_body": True})
                data = await events.read()
            await send({"type": "http.response.body", "body": data, "more_body": False})
    except GenerationFailed as error:
        raise from_failure(error.failure) from None
    except ClientGone:
        return
    finally:
        events.close()
