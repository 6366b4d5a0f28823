"""A streamed response: its events in OpenAI's order, numbered from 0.

response.created, response.in_progress; for each item response.output_item.added, its parts (content_part.added, deltas,
done, content_part.done) or the deltas of its arguments, response.output_item.done; and response.completed,
response.incomplete or response.failed with the whole response, which is stored by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ...metrics.catalogue import Metrics
from ...requests.generation import ClientGone, GenerationFailed
from ...requests.link import EngineLink
from ...requests.sequence import TokenLogprob
from ..blocks import Block, Blocks
from ..streams import EventGeneration, encode
from .output import OutputItems, failed, finished, usage_fields

# The name of a block's own events, and of the field in which `done` repeats all of it.
NAMES = {
    "reasoning": ("response.reasoning_text", "text"),
    "text": ("response.output_text", "text"),
    "call": ("response.function_call_arguments", "arguments"),
}
LAST = {"completed": "response.completed", "failed": "response.failed"}


class ResponseStream(EventGeneration):
    """The generation and the `BlockWriter` of one streamed response."""

    _head: dict[str, Any]
    _answer: Blocks
    _items: OutputItems

    def __init__(
        self,
        link: EngineLink,
        metrics: Metrics,
        *,
        save: Callable[[dict[str, Any]], Awaitable[None]],
        keep_alive_s: float,
    ) -> None:
        super().__init__(link, metrics, 1, keep_alive_s=keep_alive_s)
        self._save = save
        self._number = 0
        self._begun = False
        self._at: dict[str, Any] = {}  # where the open block is
        self._last: asyncio.Task[None] | None = None

    def start(self, head: dict[str, Any], answer: Blocks, items: OutputItems) -> None:
        """What it is going to write; before it runs."""
        self._head, self._answer, self._items = head, answer, items
        answer.writer = self

    # ------------------------------------------------------------------------------------------------ a BlockWriter

    def opened(self, index: int, block: Block) -> None:
        self._begin()
        self._push("response.output_item.added", output_index=index, item=self._items.opened(index, block))
        self._at = {"item_id": self._items.id(index, block), "output_index": index}
        if block.kind != "call":
            self._at["content_index"] = 0
            self._push("response.content_part.added", **self._at, part=self._items.part(block))

    def grew(self, index: int, block: Block, piece: str, entries: list[TokenLogprob]) -> None:
        more = {"logprobs": self._items.logprobs(entries)} if block.kind == "text" else {}
        self._push(f"{NAMES[block.kind][0]}.delta", **self._at, delta=piece, **more)

    def closed(self, index: int, block: Block) -> None:
        name, field = NAMES[block.kind]
        more: dict[str, Any] = {}
        if block.kind == "text":
            more["logprobs"] = self._items.logprobs(block.entries)
        elif block.kind == "call":
            more["name"] = block.name
        self._push(f"{name}.done", **self._at, **{field: block.text}, **more)
        if block.kind != "call":
            self._push("response.content_part.done", **self._at, part=self._items.part(block))
        self._push("response.output_item.done", output_index=index, item=self._items.item(index, block))

    # ------------------------------------------------------------------------------------------- beginning and end

    def on_stop(self, error: GenerationFailed | ClientGone | None) -> None:
        if error is None:
            self._begin()
            self._end(finished(self._head, self._answer, self._items, self))
        elif isinstance(error, GenerationFailed) and self.started:
            self._begin()
            output = self._items.all(self._answer)
            self._end(failed(self._head, error.failure, output, usage_fields(self)))
        else:
            self.events.close(error)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._push("response.created", response=self._head)
            self._push("response.in_progress", response=self._head)

    def _end(self, response: dict[str, Any]) -> None:
        """Store it, then tell: who reads the last event may ask for the response at once."""

        async def end() -> None:
            try:
                await self._save(response)
            finally:
                self._push(LAST.get(response["status"], "response.incomplete"), response=response)
                self.events.close()

        self._last = asyncio.get_running_loop().create_task(end())

    def _push(self, type: str, **fields: Any) -> None:
        body = {"type": type, "sequence_number": self._number, **fields}
        self._number += 1
        self.events.push(b"event: %b\ndata: %b\n\n" % (type.encode(), encode(body)))
