"""The client's reading of HTTP and of event streams does not depend on how the network cuts the bytes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from fake_openai import CLOSE, END, STREAM_HEAD, Gate, Request, event, fake_openai, stream, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.server.client.http import (
    BadStatus,
    Disconnected,
    EventParser,
    HttpClient,
    Malformed,
    Response,
    Unreachable,
)


def reference_events(stream: bytes) -> list[bytes]:
    """Event data by the letter of the HTML standard, line by line over the whole stream."""
    lines, line = [], b""
    position = 0
    while position < len(stream):
        byte = stream[position : position + 1]
        if byte in b"\r\n":
            if stream[position : position + 2] == b"\r\n":
                position += 1
            lines.append(line)
            line = b""
        else:
            line += byte
        position += 1
    events, data = [], []
    for line in lines:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
            continue
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value[1:] if value.startswith(b" ") else value)
    return events


NOT_ASCII = 'data: {"text":"é – 漢"}'.encode()
FIELDS = [
    b"data: {}",
    b"data:x",
    b"data: ",
    b"data",
    b": ping",
    b"event: error",
    b"id: 3",
    b"data: [DONE]",
    b"dat",
    b"",
]
LINES = st.sampled_from([*FIELDS, NOT_ASCII])
ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(LINES, ENDS), max_size=20), st.lists(st.integers(0, 200), max_size=12))
def test_events_are_those_of_the_standard_however_the_bytes_are_cut(
    lines: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    whole_stream = b"".join(line + end for line, end in lines)
    parser = EventParser()
    found: list[bytes] = []
    edges = [0, *sorted(min(cut, len(whole_stream)) for cut in cuts), len(whole_stream)]
    for start, end in itertools.pairwise(edges):
        found += parser.feed(whole_stream[start:end])
    assert found == reference_events(whole_stream)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=8))
def test_a_chunked_answer_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    body = (
        STREAM_HEAD
        + event("one")
        + event({"two": "é"})
        + b": ping\n\n".join([b"8\r\n", b"\r\n"])
        + event("3")
        + END
    )
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[start:end] for start, end in itertools.pairwise(edges)]

    async def read(url: str) -> list[bytes]:
        client = HttpClient(url)
        found = [data async for data in client.events("POST", "/", b"{}")]
        client.close()
        return found

    with fake_openai(lambda _: pieces) as fake:
        assert asyncio.run(read(fake.url)) == [b"one", b'{"two": "\\u00e9"}', b"3"]


def run_with(fake_url: str, work) -> object:
    async def go() -> object:
        client = HttpClient(fake_url)
        try:
            return await work(client)
        finally:
            client.close()

    return asyncio.run(go())


def test_one_connection_serves_requests_in_turn_and_is_replaced_when_the_server_closed_it() -> None:
    closing = iter([False, False, True, False])

    def answer(_: Request) -> list[object]:
        steps = list(whole({"ok": True}))
        return [*steps, CLOSE] if next(closing) else steps

    async def work(client: HttpClient) -> list[int]:
        statuses = []
        for _ in range(4):
            statuses.append((await client.fetch("POST", "/x", b"{}")).status)
        return statuses

    with fake_openai(answer) as fake:
        assert run_with(fake.url, work) == [200] * 4
        assert len(fake.posts()) == 4


def test_a_body_without_length_ends_with_the_connection() -> None:
    answer = [b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nsome", b" text", CLOSE]
    with fake_openai(lambda _: answer) as fake:
        response = run_with(fake.url, lambda client: client.fetch("GET", "/"))
    assert isinstance(response, Response)
    assert response.body == b"some text"


def test_continue_is_not_the_answer() -> None:
    answer = [b"HTTP/1.1 100 Continue\r\n\r\n", *whole({"real": 1}, status=201)]
    with fake_openai(lambda _: answer) as fake:
        response = run_with(fake.url, lambda client: client.fetch("POST", "/", b"{}"))
    assert isinstance(response, Response)
    assert (response.status, response.body) == (201, b'{"real": 1}')


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", CLOSE], Disconnected),
        ([STREAM_HEAD + event("one"), CLOSE], Disconnected),
        ([CLOSE], Disconnected),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], Malformed),
    ],
)
def test_an_incomplete_answer_is_an_error_of_its_kind(answer: list[object], error: type[Exception]) -> None:
    with fake_openai(lambda _: answer) as fake, pytest.raises(error):
        run_with(fake.url, lambda client: client.fetch("POST", "/", b"{}"))


def test_nothing_listening_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="nothing listens there"):
        run_with("http://127.0.0.1:1", lambda client: client.fetch("GET", "/"))


def test_refused_stream_carries_the_whole_refusal() -> None:
    async def work(client: HttpClient) -> None:
        async for _ in client.events("POST", "/", b"{}"):
            pass

    refusal = whole({"error": {"message": "full"}}, 429, "Retry-After: 3\r\n")
    with fake_openai(lambda _: refusal) as fake, pytest.raises(BadStatus) as caught:
        run_with(fake.url, work)
    assert caught.value.response.status == 429
    assert caught.value.response.headers[b"retry-after"] == b"3"
    assert b"full" in caught.value.response.body


def test_leaving_a_stream_closes_its_connection() -> None:
    gate = Gate()

    async def work(client: HttpClient) -> None:
        async with contextlib.aclosing(client.events("POST", "/", b"{}")) as events:
            async for _ in events:
                break

    with fake_openai(lambda _: stream("a", gate, "b")) as fake:
        run_with(fake.url, work)
        assert fake.left_early.wait(10)


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not a server's address"):
        HttpClient(url)


def test_a_header_cannot_smuggle_another() -> None:
    with pytest.raises(ValueError, match="line break"):
        HttpClient("http://host", headers={"X-A": "b\r\nX-C: d"})
