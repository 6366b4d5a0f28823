"""Server-sent events of one response on their way from the engine link to the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeAlias, cast

from starlette.types import Message, Send

SendCoroutine: TypeAlias = Callable[[Message], Coroutine[Any, Any, None]]
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


class EventStream:
    """A queue of bytes with one reader, a task that sends them.

    Once the reader has given its `send` away (`write_through`) and has nothing left to do, `push` calls it directly:
    an event costs no wake-up of a task, only the write. When the socket takes no more, the reader is woken and
    finishes that write, and events queue until it is done. After `keep_alive_s` seconds without an event `ping` is
    written, so that proxies keep the connection.
    """

    __slots__ = (
        "_blocked",
        "_chunks",
        "_closed",
        "_error",
        "_idle",
        "_keep_alive_s",
        "_last_event",
        "_loop",
        "_ping",
        "_send",
        "_timer",
        "_waiter",
    )

    def __init__(self, keep_alive_s: float, ping: bytes = PING) -> None:
        self._ping = ping
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._send: SendCoroutine | None = None
        self._idle = False  # the reader sleeps, and all there was has been written
        self._blocked: HalfDone | None = None
        self._closed = False
        self._error: Exception | None = None
        self._keep_alive_s = keep_alive_s
        self._last_event = self._loop.time()
        self._timer = self._loop.call_later(keep_alive_s, self._tick) if keep_alive_s > 0 else None

    def push(self, data: bytes) -> None:
        self._last_event = self._loop.time()
        if self._idle and self._send is not None:
            sending = self._send({"type": "http.response.body", "body": data, "more_body": True})
            try:
                waits_for = sending.send(None)
            except StopIteration:
                return
            self._blocked = HalfDone(sending, waits_for)
        else:
            self._chunks.append(data)
        self._wake()

    def close(self, error: Exception | None = None) -> None:
        """No more events. With `error` the reader gets that, at once and instead of what it has not read."""
        self._closed = True
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def write_through(self, send: Send) -> None:
        """From now on events may be sent by whoever pushes them."""
        self._send = cast(SendCoroutine, send)  # every server's `send` is a coroutine function

    @property
    def ended(self) -> bool:
        """Closed, and everything has been read."""
        return self._closed and not self._chunks

    async def read(self) -> bytes:
        """What is left for the reader to send, at least something; b"" at the end."""
        while self._error is None:
            if self._blocked is not None:
                blocked, self._blocked = self._blocked, None
                await blocked
            elif self._chunks:
                chunks, self._chunks = self._chunks, []
                return b"".join(chunks)
            elif self._closed:
                return b""
            else:
                self._waiter = self._loop.create_future()
                self._idle = True
                try:
                    await self._waiter
                finally:
                    self._idle = False
        raise self._error

    def _wake(self) -> None:
        self._idle = False
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _tick(self) -> None:
        """Asked once an interval at most, not at every event: the timer sleeps until the silence could be over."""
        rest = self._last_event + self._keep_alive_s - self._loop.time()
        if rest <= 0:
            if not self._chunks and self._blocked is None:
                self.push(self._ping)
            rest = self._keep_alive_s
        self._timer = self._loop.call_later(rest, self._tick)


class HalfDone:
    """A coroutine that has run up to its first wait outside any task, for a task to go on with."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        answer = yield self._waits_for
        while True:
            try:
                waits_for = self._coroutine.send(answer)
            except StopIteration:
                return
            answer = yield waits_for
