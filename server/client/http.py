"""How Penstock's own clients (`bench serve`, `chat`) speak HTTP/1.1: keep-alive connections on bare asyncio Protocols.

A load generator's own cost counts, so a response reaches its `Receiver` by plain calls from `data_received`: no task
switch, no queue and no copy of the body between the socket and whoever takes the time. Parsing HTTP (chunked bodies
included) is httptools' work.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

CONNECT_LIMIT_S = 30.0


class ClientError(Exception):
    """A request that got no complete response; the message says what happened, in one line."""


class Unreachable(ClientError):
    """No connection could be made."""


class Disconnected(ClientError):
    """The server closed the connection before the response was complete."""


class Malformed(ClientError):
    """What the server sent is not HTTP."""


class BadStatus(ClientError):
    """The server answered a stream request with something other than 200."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"HTTP {response.status}")
        self.response = response


class Receiver(Protocol):
    """Takes one response as it arrives: the head once, then each piece of the body."""

    def on_head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """`headers` has lower-case names."""

    def on_body(self, data: bytes) -> None:
        """A piece of the decoded body, cut anywhere."""


@dataclass
class Response:
    """A whole response; it is also the Receiver that collects it."""

    status: int = 0
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""

    def on_head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self.status, self.headers = status, headers

    def on_body(self, data: bytes) -> None:
        self.body += data


class EventParser:
    """Server-sent events out of pieces of bytes cut anywhere (HTML standard, section 9.2.6; only `data` matters here).

    Lines may end in LF, CRLF or CR; an event that has not ended yet is kept for the next call.
    """

    __slots__ = ("_after_cr", "_tail")

    def __init__(self) -> None:
        self._tail = b""
        self._after_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """The `data` of every event that `data` completes; comments and events without data give nothing."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._tail:
            data = self._tail + data
        blocks = data.split(b"\n\n")
        self._tail = blocks.pop()
        events = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(block[6:])
            elif (event := _data_of(block)) is not None:
                events.append(event)
        return events


def _data_of(block: bytes) -> bytes | None:
    """The joined `data` lines of one event's lines, None when it has none."""
    values = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values) if values else None


class _Connection(asyncio.Protocol):
    """One socket; one request at a time. The methods named `on_…` are httptools' callbacks."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.receiver: Receiver | None = None
        self.done: asyncio.Future[None] | None = None
        self.reusable = False
        self.heard = False  # any byte of the current response
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._until_close = False

    async def run(self, request: bytes, receiver: Receiver) -> None:
        """Write `request` and return when its response is complete; raise Disconnected or Malformed."""
        assert self.done is None, "a connection carries one request at a time"
        self.heard = self.reusable = self._until_close = False
        if self.transport is None or self.transport.is_closing():
            raise Disconnected("the connection is closed")
        self.receiver = receiver
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        try:
            await self.done
        finally:
            self.done = self.receiver = None

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _finish(self, error: Exception | None = None) -> None:
        if self.done is not None and not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        if self.receiver is None:  # nobody asked: the server gives the idle connection up
            self.abort()
            return
        self.heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._finish(error.__context__ if isinstance(error.__context__, Exception) else error)
            self.abort()
        except httptools.HttpParserError as error:
            self._finish(Malformed(f"the answer is not HTTP: {error}"))
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and self._until_close:
            self._finish()
        else:
            reason = f": {error}" if error else ""
            self._finish(Disconnected(f"the server closed the connection in mid-answer{reason}"))

    # httptools

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and its kind announce the real one
            return
        bodiless = status in (204, 304)
        self._until_close = not (
            bodiless or b"content-length" in self._headers or b"transfer-encoding" in self._headers
        )
        if self.receiver is not None:
            self.receiver.on_head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if self.receiver is not None:
            self.receiver.on_body(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self.reusable = self._parser.should_keep_alive() and not self._until_close
            self._finish()


class HttpClient:
    """Requests to one server over a pool of keep-alive connections that grows with the requests in flight.

    `base_url` may carry a path, which goes before each request's own; `headers` go with every request.
    """

    def __init__(
        self, base_url: str, *, headers: Mapping[str, str] | None = None, insecure: bool = False
    ) -> None:
        parts = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ValueError(f"{base_url!r} is not a server's address: give it as http://HOST:PORT")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._host = parts.hostname
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._prefix = parts.path.rstrip("/")
        self._tls = self._tls_context(insecure) if parts.scheme == "https" else None
        given = {"Host": parts.netloc.rpartition("@")[2], **(headers or {})}
        for name, value in given.items():
            if any(mark in name + value for mark in "\r\n\0"):
                raise ValueError(f"header {name!r}: a line break or NUL cannot be part of it")
        self._common = "".join(f"{name}: {value}\r\n" for name, value in given.items()).encode()
        self._idle: list[_Connection] = []
        self._peer: tuple[str, int] | None = None

    @staticmethod
    def _tls_context(insecure: bool) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def encode(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """A request as it goes over the wire; encoding ahead of time keeps that work out of a measured run."""
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n".encode() + self._common
        if body is None:
            return head + b"\r\n"
        return b"%sContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (head, len(body), body)

    async def exchange(self, request: bytes, receiver: Receiver) -> None:
        """Send an encoded request, feed its response to `receiver`, return when it is complete.

        Raises Unreachable, Disconnected or Malformed. Cancelling closes the connection, which tells the server to
        stop. A reused connection that turns out closed before a byte came back is replaced by a fresh one.
        """
        while True:
            reused = bool(self._idle)
            connection = self._idle.pop() if reused else await self._connect()
            try:
                await connection.run(request, receiver)
            except Disconnected:
                if reused and not connection.heard:
                    continue
                raise
            except BaseException:
                connection.abort()
                raise
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.abort()
            return

    async def fetch(self, method: str, path: str, body: bytes | None = None) -> Response:
        """A whole response, whatever its status."""
        response = Response()
        await self.exchange(self.encode(method, path, body), response)
        return response

    async def events(self, method: str, path: str, body: bytes | None = None) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event as it arrives; raises BadStatus unless the answer is a 200."""
        receiver = _EventQueue()
        task = asyncio.ensure_future(self.exchange(self.encode(method, path, body), receiver))
        task.add_done_callback(lambda _: receiver.queue.put_nowait(None))
        try:
            while (event := await receiver.queue.get()) is not None:
                yield event
            await task
            if receiver.refusal.status != 200:
                raise BadStatus(receiver.refusal)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _connect(self) -> _Connection:
        host, port = self._peer or (self._host, self._port)
        server_name = self._host if self._tls else None
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                transport, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, host, port, ssl=self._tls, server_hostname=server_name
                )
        except TimeoutError:
            raise Unreachable(
                f"{self.url} did not accept a connection within {CONNECT_LIMIT_S:.0f} s"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
            if isinstance(error, ConnectionRefusedError) or "Connect call failed" in reason:
                reason = "nothing listens there"
            raise Unreachable(f"{self.url} cannot be reached: {reason}") from None
        if self._peer is None:  # one name lookup for the whole run
            self._peer = transport.get_extra_info("peername")[:2]
        return connection

    def close(self) -> None:
        """Close the idle connections; those in use close with their request."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()


class _EventQueue:
    """A Receiver that hands events to a coroutine, or collects the body of a refusal."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.refusal = Response()
        self._parser = EventParser()

    def on_head(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self.refusal.on_head(status, headers)

    def on_body(self, data: bytes) -> None:
        if self.refusal.status == 200:
            for event in self._parser.feed(data):
                self.queue.put_nowait(event)
        else:
            self.refusal.on_body(data)
