"""Whole answers: what a choice has gathered when nobody streams it."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...scheduler.messages import FinishReason
from ..requests.generation import ClientGone, Generation, GenerationFailed
from ..requests.sequence import Failure, TokenLogprob
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
) -> None:
    """`envelope`, the choices and the usage as one JSON object."""
    body = (
        encode(envelope)[:-1]
        + b',"choices":'
        + encode(choices)
        + b',"usage":'
        + encode(generation.usage().as_dict())
        + b"}"
    )
    await Response(body, media_type="application/json")(scope, receive, send)
