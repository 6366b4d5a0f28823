"""How fast can the load generator go at all? A server whose tokens cost nothing, to measure the client against.

It answers `/v1/completions` and `/v1/chat/completions` at once with canned tokens, one chunk per token and stream in
each round, as an engine's step does; it does no work on the prompt. Rounds follow each other at once, or at an
interval: then the client is woken for each token, as by a real server, where without one it finds many at a time.
It runs as its own process (`python -m penstock.server.bench.null_server`), prints its port, and ends when its stdin
closes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from typing import cast

import msgspec
import uvloop
from msgspec import Struct

MODEL = "null"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)


class Asked(Struct):
    """What a request must say for the answer to have the right shape."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False

    @property
    def num_tokens(self) -> int:
        return max(1, self.max_completion_tokens or self.max_tokens or 16)


_decode = msgspec.json.Decoder(Asked).decode


def _event(data: bytes) -> bytes:
    """One server-sent event in one HTTP chunk."""
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _chunk(chat: bool, text: str | None, finish_reason: str | None) -> bytes:
    choice: dict[str, object] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
    if chat:
        choice["delta"] = {} if text is None else {"content": text}
    else:
        choice["text"] = text or ""
    kind = "chat.completion.chunk" if chat else "text_completion"
    answer_id = ("chatcmpl-" if chat else "cmpl-") + "0" * 32
    body = {"id": answer_id, "object": kind, "created": 1700000000, "model": MODEL, "choices": [choice]}
    return msgspec.json.encode(body)


def _usage(num_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 0, "completion_tokens": num_tokens, "total_tokens": num_tokens}


_TOKEN = {chat: _event(_chunk(chat, " token", None)) for chat in (False, True)}
_FINISH = {chat: _event(_chunk(chat, None, "length")) for chat in (False, True)}


class NullConnection(asyncio.Protocol):
    """One client connection: reads requests, and writes what `Rounds` asks of it."""

    def __init__(self, rounds: Rounds, cap: int) -> None:
        self.left = 0
        self.blocked = False
        self._rounds = rounds
        self._cap = cap
        self._total = 0
        self._chat = False
        self._buffer = b""
        self._write: Callable[[bytes], None] = lambda _: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast(asyncio.Transport, transport).write  # uvloop's does not inherit from it

    def connection_lost(self, error: Exception | None) -> None:
        self.left = 0
        self._rounds.leave(self)

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        if self.left:
            self._rounds.join(self)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while True:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line[15:])
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(head.split(b" ", 2)[1], rest[:length])

    def _answer(self, path: bytes, body: bytes) -> None:
        chat = path.endswith(b"/chat/completions")
        if not chat and not path.endswith(b"/completions"):
            listed = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            self._whole(listed if path.endswith(b"/models") else {})
            return
        asked = _decode(body)
        num_tokens = min(asked.num_tokens, self._cap)
        if not asked.stream:
            text = " token" * num_tokens
            said: dict[str, object] = (
                {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            )
            choice = {"index": 0, "finish_reason": "length", **said}
            self._whole({"id": "0", "model": MODEL, "choices": [choice], "usage": _usage(num_tokens)})
            return
        self._chat, self._total, self.left = chat, num_tokens, num_tokens
        self._write(_STREAM_HEAD)
        self._rounds.join(self)

    def _whole(self, answer: object) -> None:
        body = msgspec.json.encode(answer)
        self._write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )

    def step(self) -> bool:
        """Write the next token; False when the stream has ended or the client does not keep up."""
        self.left -= 1
        if self.left > 0:
            self._write(_TOKEN[self._chat])
            return not self.blocked
        usage = _event(msgspec.json.encode({"choices": [], "usage": _usage(self._total)}))
        self._write(_TOKEN[self._chat] + _FINISH[self._chat] + usage + _event(b"[DONE]") + b"0\r\n\r\n")
        return False


class Rounds:
    """Steps every live stream once per interval (0: per turn of the event loop); asleep when there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_s: float) -> None:
        self._loop = loop
        self._interval_s = interval_s
        self._due = 0.0
        self._streams: dict[NullConnection, None] = {}

    def join(self, stream: NullConnection) -> None:
        if not self._streams:
            self._due = self._loop.time()
            self._loop.call_soon(self._round)
        self._streams[stream] = None

    def leave(self, stream: NullConnection) -> None:
        self._streams.pop(stream, None)

    def _round(self) -> None:
        for stream in [stream for stream in self._streams if not stream.step()]:
            del self._streams[stream]
        if not self._streams:
            return
        if not self._interval_s:
            self._loop.call_soon(self._round)
            return
        self._due = max(self._due + self._interval_s, self._loop.time())
        self._loop.call_at(self._due, self._round)


async def serve(host: str, port: int, cap: int, interval_s: float) -> None:
    """Serve until stdin closes; the port goes to stdout as one line once connections are accepted."""
    loop = asyncio.get_running_loop()
    rounds = Rounds(loop, interval_s)
    server = await loop.create_server(lambda: NullConnection(rounds, cap), host, port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="null_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--max-tokens-cap", type=int, default=1 << 30, help="no answer is longer")
    parser.add_argument(
        "--interval-ms", type=float, default=0.0, help="time from one round of tokens to the next"
    )
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.host, options.port, options.max_tokens_cap, options.interval_ms / 1000))


if __name__ == "__main__":
    main()
