"""All prompts of one HTTP request that are read, not continued: submitted in turn, aborted together, counted together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from starlette.types import Receive

from ...scheduler.messages import EngineInfo
from ..metrics.catalogue import Metrics
from .generation import ClientGone, GenerationFailed, consume
from .link import EngineLink
from .pooled import PooledPrompt
from .sequence import Failure

log = logging.getLogger(__name__)


class PooledRequest:
    """The prompts of one HTTP request, in order.

    No more of them than `window` are with an engine at a time, so that one request of many prompts neither fills the
    queue for everybody nor is refused for its size alone.
    """

    def __init__(self, link: EngineLink, metrics: Metrics, window: int) -> None:
        self.prompts: list[PooledPrompt] = []
        self.log_as: str | None = None  # the id under which its end is logged; None = not at all
        self._link = link
        self._metrics = metrics
        self._waiting: deque[PooledPrompt] = deque()
        self._window = window
        self._open: set[int] = set()  # ids of those submitted and not over
        self._num_ended = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.add_done_callback(consume)

    async def run(self, receive: Receive) -> None:
        """Until all have their values. Raises `GenerationFailed` or `ClientGone`; what is not over is aborted then."""
        began = time.monotonic()
        self._metrics.count("concurrent_requests")
        watcher = asyncio.create_task(self._watch(receive))
        end = "failed"
        try:
            self._waiting.extend(self.prompts)
            self._submit()
            await self._done
            end = "done"
        except ClientGone:
            end = "client left"
            self._metrics.client_left(sum(not prompt.over for prompt in self.prompts))
            raise
        finally:
            watcher.cancel()
            self._waiting.clear()
            self._link.abort([prompt for prompt in self.prompts if not prompt.over])
            self._metrics.count("concurrent_requests", -1.0)
            if self.log_as is not None:
                log.info(
                    "request %s %s: %d prompts read, %d prompt tokens (%d cached), %.3f s",
                    *(self.log_as, end, self._num_ended, *self.tokens(), time.monotonic() - began),
                )

    def tokens(self) -> tuple[int, int]:
        """(prompt tokens, those of them that came from the prefix cache)."""
        return (
            sum(len(prompt.prompt) for prompt in self.prompts),
            sum(prompt.cached_tokens for prompt in self.prompts),
        )

    def ended(self, prompt: PooledPrompt, now: float) -> None:
        first = prompt.first
        self._metrics.prompt_pooled(
            prompt.params.task,
            seconds=now - prompt.arrival,
            queue_s=first.queue_s if first is not None else 0.0,
            prefill_s=first.prefill_s if first is not None else 0.0,
            num_prompt_tokens=len(prompt.prompt),
            cached_tokens=prompt.cached_tokens,
        )
        self._open.discard(prompt.request_id)
        self._num_ended += 1
        if self._num_ended == len(self.prompts) and not self._done.done():
            self._done.set_result(None)
        self._submit()

    def asks_again(self, prompt: PooledPrompt, failure: Failure) -> bool:
        """A queue that is full while others of this request are in it will have room when one of them is over."""
        if failure.code != "queue_full" or len(self._open) < 2 or self._done.done():
            return False
        self._open.discard(prompt.request_id)
        self._window = max(1, len(self._open))
        self._waiting.appendleft(prompt)
        return True

    def failed(self, failure: Failure) -> None:
        """One that is lost ends the whole request."""
        self._metrics.sequence_refused(failure.code)
        if not self._done.done():
            self._done.set_exception(GenerationFailed(failure))

    def _submit(self) -> None:
        while self._waiting and len(self._open) < self._window and not self._done.done():
            prompt = self._waiting.popleft()
            self._open.add(prompt.request_id)
            self._link.submit([prompt])

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._done.done():
            self._done.set_exception(ClientGone())


def window_of(info: EngineInfo) -> int:
    """Prompts of one request that are with the engine at a time: enough to fill its steps, at most half its queue."""
    return max(1, min(2 * info.max_num_seqs, info.max_num_queued_reqs // 2))
