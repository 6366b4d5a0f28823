"""A scripted OpenAI-compatible server on a real socket: each request is answered by what the test says, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

HEAD = "HTTP/1.1 {status} {status}\r\nContent-Type: {kind}\r\n"


@dataclass
class Request:
    """What the client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Pause:
    """Nothing is sent for a while."""

    seconds: float


class Gate:
    """The answer goes on when the test opens it; a client that leaves meanwhile is seen at once."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()


CLOSE = object()  # the connection ends here
Step = bytes | Pause | Gate | object
Answer = Iterable[Step]


def whole(body: Any, status: int = 200, headers: str = "", kind: str = "application/json") -> Answer:
    """An answer in one piece."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = HEAD.format(status=status, kind=kind) + headers + f"Content-Length: {len(data)}\r\n\r\n"
    return [head.encode() + data]


def event(data: Any) -> bytes:
    """One server-sent event in one HTTP chunk."""
    text = data if isinstance(data, str) else json.dumps(data)
    payload = f"data: {text}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def choice(chat: bool, text: str | None, finish_reason: str | None = None, **delta: str) -> dict[str, Any]:
    said: dict[str, Any] = {"index": 0, "finish_reason": finish_reason}
    if chat:
        said["delta"] = {**({} if text is None else {"content": text}), **delta}
    else:
        said["text"] = text or ""
    return {"choices": [said]}


STREAM_HEAD = (
    HEAD.format(status=200, kind="text/event-stream") + "Transfer-Encoding: chunked\r\n\r\n"
).encode()
END = b"0\r\n\r\n"


def stream(
    *pieces: str | Step,
    chat: bool = True,
    prompt_tokens: int = 7,
    tokens: int | None = None,
    cached: int | None = None,
    usage: bool = True,
    finish_reason: str = "stop",
) -> Answer:
    """A proper streamed answer; strings become chunks of text, other steps are taken as they are."""
    yield STREAM_HEAD
    if chat:
        yield event(choice(True, "", role="assistant"))
    for piece in pieces:
        yield event(choice(chat, piece)) if isinstance(piece, str) else piece
    yield event(choice(chat, None, finish_reason))
    if usage:
        count = sum(isinstance(piece, str) for piece in pieces) if tokens is None else tokens
        said = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": count,
            "total_tokens": prompt_tokens + count,
        }
        details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
        yield event({"choices": [], "usage": {**said, **details}})
    yield event("[DONE]") + END


def models(*names: str) -> Answer:
    return whole({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


@dataclass
class FakeOpenAI:
    """`answer` decides what each POST gets; GET /v1/models lists `names`."""

    answer: Callable[[Request], Answer]
    names: tuple[str, ...] = ("fake",)
    url: str = ""
    models_answer: Callable[[], Answer] | None = None  # in place of the list
    requests: list[Request] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    left_early: threading.Event = field(default_factory=threading.Event)  # a client closed in mid-answer

    def posts(self) -> list[Request]:
        return [request for request in self.requests if request.method == "POST"]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Request(method, path, headers, json.loads(body) if body else None)
        self.requests.append(request)
        if path == "/v1/models":
            steps = self.models_answer() if self.models_answer else models(*self.names)
        else:
            steps = self.answer(request)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            for step in steps:
                if step is CLOSE:
                    return False
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                elif isinstance(step, Gate):
                    step.reached.set()
                    while not step.open.is_set():
                        if reader.at_eof():
                            self.left_early.set()
                            return False
                        await asyncio.sleep(0.002)
                else:
                    assert isinstance(step, bytes)
                    writer.write(step)
                    await writer.drain()
        finally:
            self.in_flight -= 1
        return True


@contextlib.contextmanager
def fake_openai(answer: Callable[[Request], Answer], *names: str) -> Iterator[FakeOpenAI]:
    """Serve from a thread while the block runs."""
    fake = FakeOpenAI(answer, names or ("fake",))
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(fake._serve, "127.0.0.1", 0, backlog=1024))
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
