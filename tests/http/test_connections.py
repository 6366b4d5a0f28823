"""What a connection may take: how many there are, how long and how large their requests' beginnings may be."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from http_family import Family, family
from penstock.server.limits import LimitOptions

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b'{"prompt": "abc", "max_tokens": 3}'


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    limits = LimitOptions(header_timeout=0.3, body_timeout=0.3, max_connections=4, max_header_bytes=2048)
    with family(limits=limits) as running:
        running.client.close()
        yield running


def connect(served: Family) -> socket.socket:
    parts = urlsplit(served.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def answer(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data


def test_a_connection_that_says_nothing_is_closed(served: Family) -> None:
    with connect(served) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 408 ")


def test_headers_that_drip_are_cut_off(served: Family) -> None:
    with connect(served) as connection:
        connection.sendall(HEAD)
        assert answer(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_never_ends_is_cut_off(served: Family) -> None:
    with connect(served) as connection:
        connection.sendall(HEAD + b"content-length: 1000\r\n\r\n" + BODY)
        assert answer(connection).startswith(b"HTTP/1.1 408 ")


def test_a_second_request_on_a_connection_has_its_own_time(served: Family) -> None:
    whole = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    with connect(served) as connection:
        connection.sendall(whole)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(HEAD)
        assert answer(connection).startswith(b"HTTP/1.1 408 ")


def test_headers_beyond_the_limit_are_refused(served: Family) -> None:
    with connect(served) as connection:
        connection.sendall(HEAD + b"x-long: " + b"a" * 4096 + b"\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 431 ")


def test_connections_beyond_the_limit_are_refused_and_the_others_are_served(served: Family) -> None:
    client = httpx.Client(base_url=served.url, timeout=10)
    with client:
        assert client.get("/health").status_code == 200  # holds one connection
        crowd = [connect(served) for _ in range(4)]
        refused = [
            text for text in (answer(connection) for connection in crowd) if text.startswith(b"HTTP/1.1 503 ")
        ]
        assert refused
        assert client.post("/v1/completions", content=BODY).status_code == 200
        for connection in crowd:
            connection.close()
