"""All sequences of one HTTP request: submitted together, aborted together, counted together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive

from ..metrics.catalogue import Metrics
from .link import EngineLink
from .sequence import Failure, Sequence

log = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client closed its connection before its answer was complete."""


class GenerationFailed(Exception):
    """The answer will not come; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Usage:
    """Token counts of a request; the prompt of several choices counts once."""

    __slots__ = (
        "cached_tokens",
        "completion_tokens",
        "prediction_tokens",
        "prompt_tokens",
        "reasoning_tokens",
    )

    def __init__(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int,
        reasoning_tokens: int | None = None,
        prediction_tokens: tuple[int, int] | None = None,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens
        self.reasoning_tokens = reasoning_tokens  # None: the model's thinking is not marked
        self.prediction_tokens = prediction_tokens  # accepted, rejected; None: nothing was predicted

    def as_dict(self) -> dict[str, object]:
        counts: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        details = {}
        if self.reasoning_tokens is not None:
            details["reasoning_tokens"] = self.reasoning_tokens
        if self.prediction_tokens is not None:
            details["accepted_prediction_tokens"], details["rejected_prediction_tokens"] = (
                self.prediction_tokens
            )
        if details:
            counts["completion_tokens_details"] = details
        return counts


class Generation:
    """Sequences in the order of their choices' indices, `choices_per_prompt` for each prompt."""

    def __init__(self, link: EngineLink, metrics: Metrics, choices_per_prompt: int) -> None:
        self._link = link
        self._metrics = metrics
        self._choices_per_prompt = choices_per_prompt
        self._open = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.add_done_callback(consume)
        self.sequences: list[Sequence] = []
        self.client_gone = False
        self.log_as: str | None = None  # the id under which its end is logged; None = not at all
        self.counts_output = True  # False if what is generated is not part of the answer

    @asynccontextmanager
    async def running(self, receive: Receive, *, max_tokens: int) -> AsyncIterator[None]:
        """Submits the sequences; whatever of them is not over when the block ends, is aborted.

        Meanwhile the client is watched: when it leaves, the waiting side gets `ClientGone` at once.
        """
        began = time.monotonic()
        self._open = len(self.sequences)
        self._metrics.request_began(self._choices_per_prompt, max_tokens)
        watcher = asyncio.create_task(self._watch(receive))
        try:
            self._link.submit(self.sequences)
            if not self._open:
                self._complete()
            yield
        finally:
            watcher.cancel()
            unfinished = [sequence for sequence in self.sequences if not sequence.over]
            self._link.abort(unfinished)
            if self.client_gone:
                self._metrics.client_left(len(unfinished))
            self._metrics.request_ended()
            if self.log_as is not None:
                self._log(time.monotonic() - began)

    async def finished(self) -> None:
        """Until all sequences are complete. Raises `GenerationFailed` or `ClientGone`."""
        await self._done

    def sequence_ended(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._complete()

    def sequence_failed(self, failure: Failure) -> None:
        """One lost sequence ends the whole request: half an answer would look like one."""
        self._stop(GenerationFailed(failure))

    def accepted(self) -> None:
        """The client has been told 200: none of the sequences may be refused from now on."""
        for sequence in self.sequences:
            sequence.accepted = True

    def usage(self) -> Usage:
        heads = self.sequences[:: self._choices_per_prompt]
        thought = [
            sequence.reasoning_tokens for sequence in self.sequences if sequence.reasoning_tokens is not None
        ]
        predicted = [sequence for sequence in self.sequences if sequence.prediction]
        return Usage(
            sum(len(sequence.prompt) for sequence in heads),
            sum(len(sequence.output) for sequence in self.sequences) if self.counts_output else 0,
            sum(sequence.cached_tokens for sequence in heads),
            sum(thought) if thought else None,
            (
                sum(sequence.accepted_prediction_tokens for sequence in predicted),
                sum(sequence.rejected_prediction_tokens for sequence in predicted),
            )
            if predicted
            else None,
        )

    def _log(self, seconds: float) -> None:
        usage = self.usage()
        failed = self._done.done() and self._done.exception() is not None
        end = "client left" if self.client_gone else "failed" if failed else "done"
        log.info(
            "request %s %s: %d choices, %d prompt tokens (%d cached), %d output tokens, %.3f s",
            *(self.log_as, end, len(self.sequences)),
            *(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, seconds),
        )

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.client_gone = not self._done.done()
        self._stop(ClientGone())

    def _complete(self) -> None:
        if not self._done.done():
            self._done.set_result(None)
            self.on_stop(None)

    def _stop(self, error: GenerationFailed | ClientGone) -> None:
        if not self._done.done():
            self._done.set_exception(error)
            self.on_stop(error)

    def on_stop(self, error: GenerationFailed | ClientGone | None) -> None:
        """A stream overrides this to write its last events."""


def consume(done: asyncio.Future[None]) -> None:
    """Marks an exception as seen: whoever streams learns of it another way."""
    if not done.cancelled():
        done.exception()
