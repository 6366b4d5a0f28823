"""No client learns from its cached_tokens what another asked: the real server, real pages, no clock."""

from __future__ import annotations

import httpx
import pytest
from running_server import serve

KEYS = ("alpha-key", "beta-key")
PROMPT = "Repeat this: " + "the quick brown fox jumps over the lazy dog " * 8


def cached(url: str, key: str, **body: object) -> int:
    reply = httpx.post(
        f"{url}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1, **body},
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
    )
    assert reply.status_code == 200, reply.text
    tokens: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


@pytest.mark.parametrize(
    ("scope", "own", "others"), [("global", True, True), ("tenant", True, False), ("request", False, False)]
)
def test_cached_tokens_show_the_requests_of_the_scope_alone(scope: str, own: bool, others: bool) -> None:
    with serve(
        "--prefix-cache-scope", scope, "--api-key", KEYS[0], "--api-key", KEYS[1], "--max-num-seqs", "4"
    ) as server:
        assert cached(server.url, KEYS[0]) == 0
        assert (cached(server.url, KEYS[0]) > 0) == own
        assert (cached(server.url, KEYS[1]) > 0) == others
        assert cached(server.url, KEYS[0], cache_salt="mine") == 0
        assert (cached(server.url, KEYS[0], cache_salt="mine") > 0) == own
