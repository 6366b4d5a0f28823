"""The null server answers in the API's shape, and the client's own limit is measured against it and printed."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from penstock.server.bench.calibrate import measure_limit, null_server
from penstock.server.bench.cli import main
from penstock.server.bench.load import Endpoint
from penstock.server.client.chunks import DONE, decode_chunk
from penstock.server.client.http import HttpClient

# (path, max_tokens, tokens that come under a cap of 20)
CASES = (("/v1/completions", 5, 5), ("/v1/chat/completions", 7, 7), ("/v1/completions", 99, 20))


def test_the_null_server_streams_the_tokens_asked_for_and_ends_with_its_user() -> None:
    async def go() -> None:
        async with null_server(cap=20) as url:
            client = HttpClient(url)
            for path, asked, expected in CASES:
                body = msgspec.json.encode({"max_tokens": asked, "stream": True, "prompt": "x" * 300_000})
                *events, done = [event async for event in client.events("POST", path, body)]
                assert done == DONE
                chunks = [decode_chunk(event) for event in events]
                assert sum(bool(c.choices and c.choices[0].says_something) for c in chunks) == expected
                assert chunks[-2].choices[0].finish_reason == "length"
                assert chunks[-1].usage.completion_tokens == expected
            whole = await client.fetch("POST", "/v1/completions", b'{"max_tokens": 3}')
            assert json.loads(whole.body)["choices"][0]["text"] == " token" * 3
            assert json.loads((await client.fetch("GET", "/v1/models")).body)["data"][0]["id"] == "null"
            client.close()

    asyncio.run(go())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_limit_is_cpu_time_per_token(path: str) -> None:
    body = Endpoint(path, "m").body([], 16)
    limit = asyncio.run(measure_limit(path, [body], 16, streams=8, measure_s=0.2))
    assert limit.tokens_per_s * limit.cpu_us_per_token == pytest.approx(1e6)
    # Each request streams its 16 tokens, whole requests or parts of them at both ends of the measured time.
    assert limit.tokens_per_s / limit.requests_per_s == pytest.approx(16, rel=0.5)
    assert limit.share(limit.tokens_per_s / 4) == pytest.approx(0.25)
    assert (limit.streams, limit.tokens_per_request) == (8, 16)


def test_a_run_prints_the_clients_limit_and_how_much_of_it_it_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def go() -> int:
        async with null_server() as url:
            arguments = ["--base-url", url, "--num-prompts", "20", "--max-concurrency", "4", "--json", "-"]
            return await asyncio.to_thread(
                main, [*arguments, "--random-input-len", "20", "--random-output-len", "8"]
            )

    assert asyncio.run(go()) == 0
    shown = capsys.readouterr()
    figures = json.loads(shown.out)
    assert figures["total_output_tokens"] == 160
    limit = figures["client_limit"]
    assert limit["used_share"] == pytest.approx(figures["output_throughput"] / limit["output_throughput"])
    assert (limit["streams"], limit["tokens_per_request"]) == (4, 8)
    assert "client limit here: " in shown.err
    assert "µs CPU per token" in shown.err
