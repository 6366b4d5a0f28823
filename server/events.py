"""Server-sent events of one response on their way from the engine link to the socket."""

from __future__ import annotations

import asyncio

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


class EventStream:
    """A queue of bytes with one reader. Writing costs an append and, if the reader sleeps, one wake-up.

    After `keep_alive_s` seconds without a write a comment is written, so that proxies keep the connection.
    """

    __slots__ = ("_chunks", "_closed", "_error", "_keep_alive_s", "_last_read", "_loop", "_timer", "_waiter")

    def __init__(self, keep_alive_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._error: Exception | None = None
        self._keep_alive_s = keep_alive_s
        self._last_read = self._loop.time()
        self._timer = self._loop.call_later(keep_alive_s, self._tick) if keep_alive_s > 0 else None

    def push(self, data: bytes) -> None:
        self._chunks.append(data)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def close(self, error: Exception | None = None) -> None:
        """No more events. With `error` the reader gets that, at once and instead of what it has not read."""
        self._closed = True
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @property
    def ended(self) -> bool:
        """Closed, and everything has been read."""
        return self._closed and not self._chunks

    async def read(self) -> bytes:
        """All that is there, at least something; b"" at the end."""
        while not self._chunks and not self._closed:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        chunks = self._chunks
        self._last_read = self._loop.time()
        if len(chunks) == 1:
            return chunks.pop()
        self._chunks = []
        return b"".join(chunks)

    def _tick(self) -> None:
        """Asked once an interval at most, not at every event: the timer sleeps until the silence could be over."""
        now = self._loop.time()
        rest = self._last_read + self._keep_alive_s - now
        if rest <= 0:
            if not self._chunks:
                self.push(PING)
            rest = self._keep_alive_s
        self._timer = self._loop.call_later(rest, self._tick)
