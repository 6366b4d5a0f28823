"""A conversation with a served model: its history, and one streamed answer at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TypeAlias

import msgspec

from ..client.chunks import DONE, Usage, decode_chunk, error_text
from ..client.http import BadStatus, ClientError, HttpClient

Message: TypeAlias = dict[str, str]


class ChatFailed(Exception):
    """An answer, or a server, that is not to be had; the message is one line for the user."""


@dataclass
class AnswerStats:
    """Figures of the last answer. Without usage from the server `tokens` counts chunks."""

    ttft_s: float | None = None
    duration_s: float = 0.0
    tokens: int = 0
    counted: bool = True
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None

    def lines(self) -> list[str]:
        if self.ttft_s is None:
            return ["no answer yet"]
        decode_s = self.duration_s - self.ttft_s
        rate = f", {(self.tokens - 1) / decode_s:,.1f} tok/s" if self.tokens > 1 and decode_s > 0 else ""
        cached = f", {self.cached_tokens} of them cached" if self.cached_tokens is not None else ""
        prompt = f"prompt: {self.prompt_tokens} tokens{cached}; " if self.prompt_tokens is not None else ""
        unit = "chunks" if self.counted else "tokens"
        end = self.finish_reason or "stopped"
        return [
            f"{prompt}answer: {self.tokens} {unit}, first after {1000 * self.ttft_s:,.0f} ms{rate} ({end})"
        ]


class Session:
    """History and settings; `messages` always alternates user and assistant."""

    def __init__(
        self,
        client: HttpClient,
        *,
        model: str,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.system = system
        self.messages: list[Message] = []
        self.stats = AnswerStats()
        self.client = client
        settings = {"temperature": temperature, "max_tokens": max_tokens}
        self._settings = {name: value for name, value in settings.items() if value is not None}

    @property
    def history(self) -> list[Message]:
        """What the server is sent: the system prompt and all turns."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    async def ask(self, text: str, show: Callable[[str, bool], None]) -> None:
        """Stream the answer to `text` into `show(piece, is_reasoning)` and take both into the history.

        Cancelling stops the server; what it said until then stays as its turn. An answer without a word leaves the
        history as it was. Raises ChatFailed.
        """
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            await self._stream(said, show)
        except ClientError as error:
            raise ChatFailed(self._explain(error)) from None
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self.messages.pop()

    async def _stream(self, said: list[str], show: Callable[[str, bool], None]) -> None:
        body = msgspec.json.encode(
            {
                "model": self.model,
                "messages": self.history,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self._settings,
            }
        )
        stats = self.stats = AnswerStats()
        start = perf_counter()
        whole = False
        try:
            async with contextlib.aclosing(
                self.client.events("POST", "/v1/chat/completions", body)
            ) as events:
                async for event in events:
                    if event == DONE:
                        whole = True
                        break
                    try:
                        chunk = decode_chunk(event)
                    except msgspec.DecodeError as error:
                        raise ChatFailed(f"the server sent a chunk that makes no sense: {error}") from None
                    if chunk.error is not None:
                        raise ChatFailed(f"the server gave the answer up: {error_text(chunk.error)}")
                    if chunk.usage is not None:
                        _take_usage(stats, chunk.usage)
                    if not chunk.choices:
                        continue
                    choice = chunk.choices[0]
                    stats.finish_reason = choice.finish_reason or stats.finish_reason
                    whole = whole or choice.finish_reason is not None
                    if not choice.says_something or choice.delta is None:
                        continue
                    if stats.ttft_s is None:
                        stats.ttft_s = perf_counter() - start
                    if stats.counted:
                        stats.tokens += 1
                    if thought := choice.delta.reasoning_content or choice.delta.reasoning:
                        show(thought, True)
                    if choice.delta.content:
                        said.append(choice.delta.content)
                        show(choice.delta.content, False)
        finally:
            stats.duration_s = perf_counter() - start
        if not whole:
            raise ChatFailed("the server ended the stream in mid-answer")

    async def regenerate(self, show: Callable[[str, bool], None]) -> None:
        """Another answer to the last question; the old one comes back when there is no new one. Raises ChatFailed."""
        if len(self.messages) < 2:
            raise ChatFailed("there is no answer to give again")
        *before, question, answer = self.messages
        self.messages = list(before)
        try:
            await self.ask(question["content"], show)
        finally:
            if len(self.messages) == len(before):
                self.messages = [*before, question, answer]

    def _explain(self, error: ClientError) -> str:
        if not isinstance(error, BadStatus):
            return str(error)
        response = error.response
        text = f"the server answered {response.status}: {error_text(response.body)}"
        if response.status in (401, 403):
            text += " (give --api-key)"
        if retry := response.headers.get(b"retry-after"):
            text += f" (try again in {retry.decode(errors='replace')} s)"
        return text


def _take_usage(stats: AnswerStats, usage: Usage) -> None:
    if usage.completion_tokens is not None:
        stats.tokens, stats.counted = usage.completion_tokens, False
    stats.prompt_tokens, stats.cached_tokens = usage.prompt_tokens, usage.cached_tokens
