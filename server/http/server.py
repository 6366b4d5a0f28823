"""uvicorn as this front end runs it: header limits, an end that is told and not signalled, no ticking while idle."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Generator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..limits import LimitOptions
from .events import WRITE

KEEP_ALIVE_S = 65
DATE_INTERVAL_S = 1.0
REFUSAL = b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
HEADERS_TOO_LARGE = REFUSAL % b"431 Request Header Fields Too Large"
TOO_SLOW = REFUSAL % b"408 Request Timeout"
TOO_MANY = REFUSAL % b"503 Service Unavailable\r\nretry-after: 1"


class HeadersTooLarge(Exception):
    """Raised inside the parser, which then gives up the connection."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection within the bounds of `limits`: their number, the size of headers, the time a request may take.

    Time runs while the client owes something: headers from the connection's start or a request's first byte on, then
    its body. Between requests uvicorn's keep-alive time runs, while an answer is written none does.
    """

    _in_headers = True
    _header_bytes = 0  # of headers that are not complete
    _owed: asyncio.TimerHandle | None = None

    def __init__(self, limits: LimitOptions, **parts: Any) -> None:
        super().__init__(**parts)
        self._limits = limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(TOO_MANY)
        else:
            self._expect(self._limits.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        too_long = self._in_headers and self._header_bytes > self._limits.max_header_bytes
        if too_long and not self.transport.is_closing():
            self._refuse(HEADERS_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._in_headers = True
        self._expect(self._limits.header_timeout)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self._limits.max_header_bytes:
            raise HeadersTooLarge
        self._in_headers = False
        self._header_bytes = 0
        self._expect(self._limits.body_timeout)
        super().on_headers_complete()
        if self.cycle is not None:
            self.scope[WRITE] = functools.partial(write_chunk, self.cycle)  # type: ignore[literal-required]

    def on_message_complete(self) -> None:
        self._expect(None)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._in_headers and self._header_bytes > self._limits.max_header_bytes:
            self._refuse(HEADERS_TOO_LARGE)
        else:
            super().send_400_response(msg)

    def _expect(self, seconds: float | None) -> None:
        """The client has this long for what it owes; None: it owes nothing."""
        if self._owed is not None:
            self._owed.cancel()
        self._owed = None if seconds is None else self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            answered = self.cycle is not None and self.cycle.response_started
            self._refuse(b"" if answered and not self._in_headers else TOO_SLOW)

    def _refuse(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()


def write_chunk(cycle: RequestResponseCycle, data: bytes) -> bool:
    """What the cycle's `send` does with a part of a chunked body, without a coroutine; False where it would wait."""
    if cycle.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
    return True


class HttpServer(uvicorn.Server):
    """Runs until `stop`, then closes idle connections and lets the others finish."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: LimitOptions,
        root_path: str,
        ssl_keyfile: str | None,
        ssl_certfile: str | None,
        grace_s: float,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=functools.partial(LimitedProtocol, limits),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                root_path=root_path,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(grace_s) + 1,
                ssl_keyfile=ssl_keyfile,
                ssl_certfile=ssl_certfile,
            )
        )
        self._stop = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the caller's: uvicorn would raise them again when it is done."""
        yield

    def stop(self) -> None:
        self._stop.set()

    async def main_loop(self) -> None:
        """Keeps the Date header true."""
        while not self._stop.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_INTERVAL_S):
                    await self._stop.wait()
        self.should_exit = True


def inherited_socket(descriptor: int) -> socket.socket:
    """The listening socket that the supervisor opened."""
    listening = socket.socket(fileno=descriptor)
    listening.setblocking(False)
    return listening
