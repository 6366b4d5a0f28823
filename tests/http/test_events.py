"""Events reach a slow client whole and in order, and a fast one without a task being woken for each."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from http_family import Family, family, wait_until
from penstock.server.http.events import PING, EventStream

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Socket:
    """A server's `send` and `write` that take `room` events; then one blocks until there is room again, one refuses."""

    def __init__(self, room: int) -> None:
        self.sent = b""
        self.room = room
        self.writable = asyncio.Event()

    async def send(self, message: dict) -> None:
        while self.room == 0:
            self.writable.clear()
            await self.writable.wait()
        self.room -= 1
        self.sent += message["body"]

    def write(self, data: bytes) -> bool:
        if self.room == 0:
            return False
        self.room -= 1
        self.sent += data
        return True

    def make_room(self, room: int) -> None:
        self.room = room
        self.writable.set()


async def reader(events: EventStream, sink: Socket) -> None:
    events.write_through(sink.write)
    while not events.ended:
        await sink.send({"body": await events.read()})


def run(loop: str, test: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(asyncio.wait_for(test(), 10))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_blocked_write_is_finished_by_the_reader_and_nothing_overtakes_it(loop: str) -> None:
    async def test() -> None:
        events, sink = EventStream(0), Socket(room=2)
        reading = asyncio.create_task(reader(events, sink))
        await turns()
        for number in range(6):
            events.push(b"%d" % number)
        assert sink.sent == b"01"  # at once; the third write is stuck
        await turns()
        events.push(b"6")
        sink.make_room(100)
        await turns()
        events.push(b"7")
        assert sink.sent == b"01234567"
        events.push(b"8")
        events.close()
        await reading
        assert sink.sent == b"012345678"

    run(loop, test)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_error_reaches_a_reader_that_sleeps(loop: str) -> None:
    async def test() -> None:
        events, sink = EventStream(0), Socket(room=9)
        reading = asyncio.create_task(reader(events, sink))
        await turns()
        events.close(ValueError("over"))
        with pytest.raises(ValueError, match="over"):
            await reading

    run(loop, test)


def test_comments_come_only_after_silence() -> None:
    async def test() -> None:
        events, sink = EventStream(0.02), Socket(room=99)
        reading = asyncio.create_task(reader(events, sink))
        while PING not in sink.sent:
            events.push(b"x") if len(sink.sent) < 3 else None
            await asyncio.sleep(0.001)
        assert sink.sent.startswith(b"xxx" + PING)
        events.close()
        await reading

    run("uvloop", test)


def test_an_event_of_a_served_stream_is_written_without_waking_a_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = 0
    read = EventStream.read

    async def counted(self: EventStream) -> bytes:
        nonlocal reads
        reads += 1
        return await read(self)

    monkeypatch.setattr(EventStream, "read", counted)
    with family() as served:
        served.engine.script = served.ids("one two three four " * 10)
        request = {"prompt": "Hi", "max_tokens": 30, "stream": True, "ignore_eos": True}
        served.engine.allow(1)
        with served.client.stream("POST", "/v1/completions", json=request) as answer:
            lines = answer.iter_lines()
            events = [next(lines)]
            served.engine.allow(None)
            events += [line for line in lines if line.startswith("data: ")]
    assert len(events) == 30 + 2  # tokens, the finish reason, [DONE]
    assert reads <= 4  # before the headers, at the end, and while the first event was still being sent


def read_slowly(served: Family, request: dict) -> bytes:
    """The raw reply, first read when the server has long been stuck."""
    data = json.dumps(request).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(served.url.rpartition(":")[2])))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        client.sendall(head % len(data) + data)
        wait_until(
            lambda: not served.services.link.num_outstanding and bool(served.engine.seen.submits),
            "all tokens",
        )
        reply = b""
        while piece := client.recv(1 << 20):
            reply += piece
    return reply


def test_a_slow_client_reads_every_event() -> None:
    with family(engine={"max_model_len": 4000, "tokens_per_step": 4}) as served:
        served.engine.script = served.ids("one two three four " * 900)
        request = {
            "prompt": "Hi",
            "n": 4,
            "max_tokens": 2000,
            "stream": True,
            "ignore_eos": True,
            "logprobs": 20,
        }
        reply = read_slowly(served, request)
        texts = [""] * 4
        for line in reply.split(b"\n"):
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += choice["text"]
        assert len(reply) > 4_000_000
        assert texts == [served.tokenizer.decode(served.engine.script[:2000])] * 4
        assert reply.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
