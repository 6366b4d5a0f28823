"""Server-sent events of one response on their way from the engine link to the socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

# Writes a part of a response's body at once; False if the socket takes none now, and nothing was written.
Write: TypeAlias = Callable[[bytes], bool]
WRITE = "penstock.write"  # where the server puts a response's `Write` in its ASGI scope
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


class EventStream:
    """A queue of bytes with one reader, a task that sends them.

    Once the reader has said how to write (`write_through`) and has nothing left to do, `push` writes at once: an event
    costs no wake-up of a task. What the socket does not take is queued for the reader, who waits until it does. After
    `keep_alive_s` seconds without an event `ping` is written, so that proxies keep the connection.
    """

    __slots__ = (
        "_chunks",
        "_closed",
        "_error",
        "_idle",
        "_keep_alive_s",
        "_last_event",
        "_loop",
        "_ping",
        "_timer",
        "_waiter",
        "_write",
    )

    def __init__(self, keep_alive_s: float, ping: bytes = PING) -> None:
        self._ping = ping
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._write: Write | None = None
        self._idle = False  # the reader sleeps, and all there was has been written
        self._closed = False
        self._error: Exception | None = None
        self._keep_alive_s = keep_alive_s
        self._last_event = self._loop.time()
        self._timer = self._loop.call_later(keep_alive_s, self._tick) if keep_alive_s > 0 else None

    def push(self, data: bytes) -> None:
        self._last_event = self._loop.time()
        if self._idle and self._write is not None and self._write(data):
            return
        self._chunks.append(data)
        self._wake()

    def close(self, error: Exception | None = None) -> None:
        """No more events. With `error` the reader gets that, at once and instead of what it has not read."""
        self._closed = True
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def write_through(self, write: Write | None) -> None:
        """From now on events may be written by whoever pushes them; None: only by the reader."""
        self._write = write

    @property
    def ended(self) -> bool:
        """Closed, and everything has been read."""
        return self._closed and not self._chunks

    async def read(self) -> bytes:
        """What is left for the reader to send, at least something; b"" at the end."""
        while self._error is None:
            if self._chunks:
                chunks, self._chunks = self._chunks, []
                return b"".join(chunks)
            if self._closed:
                return b""
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
            if not self._chunks:
                self.push(self._ping)
            rest = self._keep_alive_s
        self._timer = self._loop.call_later(rest, self._tick)
