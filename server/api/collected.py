"""Whole answers: what a choice has gathered when nobody streams it."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...scheduler.messages import FinishReason
from ..parsing.events import CallArguments, CallStart, Content, Event, Reasoning
from ..requests.generation import ClientGone, Generation, GenerationFailed
from ..requests.sequence import Failure, TokenLogprob
from .chat_calls import ChatCalls, ChatFinishReason
from .errors import from_failure
from .streams import Envelope, encode


class CollectedChoice:
    """A sink that keeps everything."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._texts: list[str] = []
        self.prompt_entries: list[TokenLogprob] = []
        self.entries: list[TokenLogprob] = []
        self.finish_reason: FinishReason = "stop"
        self.stop_reason: int | str | None = None

    @property
    def whole_text(self) -> str:
        return "".join(self._texts)

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        self.prompt_entries = entries

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None:
        self._texts.append(text)
        if logprobs:
            self.entries += logprobs

    def finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        self.finish_reason = reason
        self.stop_reason = stop_reason
        self._generation.sequence_ended()

    def fail(self, failure: Failure) -> None:
        self._generation.sequence_failed(failure)


class CollectedChat(CollectedChoice):
    """One choice of a chat, which may have been taken apart."""

    def __init__(self, generation: Generation, calls: ChatCalls) -> None:
        super().__init__(generation)
        self._calls = calls
        self._reasoning: list[str] = []

    def events(self, events: list[Event], logprobs: list[TokenLogprob] | None) -> None:
        if logprobs:
            self.entries += logprobs
        for event in events:
            match event:
                case Content(text):
                    self._texts.append(text)
                case Reasoning(text):
                    self._reasoning.append(text)
                case CallStart():
                    self._calls.start(event)
                case CallArguments():
                    self._calls.arguments(event)

    @property
    def chat_finish_reason(self) -> ChatFinishReason:
        return self._calls.finish_reason(self.finish_reason)

    def message(self) -> dict[str, Any]:
        """The assistant's message; content is null where there is something else in its place."""
        content = self.whole_text
        reasoning = "".join(self._reasoning)
        calls = self._calls.whole()
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if calls or reasoning else ""),
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        if reasoning:
            message["reasoning_content"] = message["reasoning"] = reasoning
        return message


async def wait_for_all(generation: Generation, receive: Receive, *, max_tokens: int) -> bool:
    """Run it to its end; False if the client left. Raises the API's error if it fails."""
    try:
        async with generation.running(receive, max_tokens=max_tokens):
            await generation.finished()
    except GenerationFailed as error:
        raise from_failure(error.failure) from None
    except ClientGone:
        return False
    return True


async def send_whole(
    envelope: Envelope,
    choices: list[dict[str, Any]],
    generation: Generation,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    more: dict[str, Any] | None = None,
) -> None:
    """`envelope`, the choices, the usage and the fields in `more` as one JSON object."""
    body = (
        encode(envelope)[:-1]
        + b',"choices":'
        + encode(choices)
        + b',"usage":'
        + encode(generation.usage().as_dict())
        + (b"," + encode(more)[1:] if more else b"}")
    )
    await Response(body, media_type="application/json")(scope, receive, send)
