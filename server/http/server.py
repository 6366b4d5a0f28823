"""uvicorn as this front end runs it: header limits, an end that is told and not signalled, no ticking while idle."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 << 10
KEEP_ALIVE_S = 65
DATE_INTERVAL_S = 1.0
HEADERS_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)


class HeadersTooLarge(Exception):
    """Raised inside the parser, which then gives up the connection."""


class LimitedProtocol(HttpToolsProtocol):
    """Answers 431 and closes when request line and headers grow beyond `MAX_HEADER_BYTES`."""

    _in_headers = True
    _header_bytes = 0  # of headers that are not complete

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        self._in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
            raise HeadersTooLarge
        self._in_headers = False
        self._header_bytes = 0
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _refuse(self) -> None:
        self.transport.write(HEADERS_TOO_LARGE)
        self.transport.close()


class HttpServer(uvicorn.Server):
    """Runs until `stop`, then closes idle connections and lets the others finish."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        root_path: str,
        ssl_keyfile: str | None,
        ssl_certfile: str | None,
        grace_s: float,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=LimitedProtocol,
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
