"""A streamed message: its events in Anthropic's order.

message_start; for each block content_block_start, content_block_delta…, content_block_stop; message_delta with the
stop reason and the usage; message_stop. `ping` may come anywhere: behind the first block's start, and into a long
silence. An error ends the stream as an event `error`.
"""

from __future__ import annotations

from typing import Any

from ...metrics.catalogue import Metrics
from ...requests.generation import ClientGone, GenerationFailed
from ...requests.link import EngineLink
from ...requests.sequence import TokenLogprob
from ..blocks import Block, Blocks
from ..errors import anthropic_error_body, from_failure
from ..streams import EventGeneration, encode
from .answer import empty_block, signature, stop_fields, usage_fields

PING_EVENT = b'event: ping\ndata: {"type":"ping"}\n\n'
DELTA = b"event: content_block_delta\ndata: "
DELTA_NAMES = {
    "reasoning": b'"thinking_delta","thinking":',
    "text": b'"text_delta","text":',
    "call": b'"input_json_delta","partial_json":',
}


def event(body: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (body["type"].encode(), encode(body))


class MessageStream(EventGeneration):
    """The generation and the `BlockWriter` of one streamed message. Its `answer` is set before it runs."""

    answer: Blocks

    def __init__(
        self,
        link: EngineLink,
        metrics: Metrics,
        *,
        head: dict[str, Any],
        request_id: str,
        hide_thinking: bool,
        context_ends_it: bool,
        keep_alive_s: float,
    ) -> None:
        super().__init__(link, metrics, 1, keep_alive_s=keep_alive_s, ping=PING_EVENT)
        self._head = head
        self._request_id = request_id
        self._hide_thinking = hide_thinking
        self._context_ends_it = context_ends_it
        self._begun = False
        self._delta = b""

    def opened(self, index: int, block: Block) -> None:
        self._begin()
        start = {"type": "content_block_start", "index": index, "content_block": empty_block(block)}
        self.events.push(event(start))
        if index == 0:
            self.events.push(PING_EVENT)
        kind = DELTA_NAMES[block.kind]
        self._delta = b'%b{"type":"content_block_delta","index":%d,"delta":{"type":%b' % (DELTA, index, kind)

    def grew(self, index: int, block: Block, piece: str, entries: list[TokenLogprob]) -> None:
        if block.kind != "reasoning" or not self._hide_thinking:
            self.events.push(self._delta + encode(piece) + b"}}\n\n")

    def closed(self, index: int, block: Block) -> None:
        if block.kind == "reasoning":
            delta = {
                "type": "signature_delta",
                "signature": signature(block.text, hidden=self._hide_thinking),
            }
            self.events.push(event({"type": "content_block_delta", "index": index, "delta": delta}))
        self.events.push(event({"type": "content_block_stop", "index": index}))

    def on_stop(self, error: GenerationFailed | ClientGone | None) -> None:
        if error is None:
            self._begin()
            delta = stop_fields(self.answer, context_ends_it=self._context_ends_it)
            self.events.push(event({"type": "message_delta", "delta": delta, "usage": usage_fields(self)}))
            self.events.push(event({"type": "message_stop"}))
            self.events.close()
        elif isinstance(error, GenerationFailed) and self.started:
            body = anthropic_error_body(from_failure(error.failure), self._request_id)
            self.events.push(b"event: error\ndata: " + body + b"\n\n")
            self.events.close()
        else:
            self.events.close(error)

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        message = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None}
        message["usage"] = usage_fields(self)
        self.events.push(event({"type": "message_start", "message": message}))
