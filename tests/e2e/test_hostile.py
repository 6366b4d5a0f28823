"""A barrage of malformed requests at the real server leaves its answers, its pages and its processes as they were."""

from __future__ import annotations

import httpx
from malformed import CASES, LIMIT, assert_refused, body_of
from running_server import serve, wait_until

QUESTION = {
    "messages": [{"role": "user", "content": "Count from 1 to 9."}],
    "temperature": 0,
    "max_tokens": 40,
    "logprobs": True,
}


def test_malformed_requests_are_refused_and_change_nothing() -> None:
    options = ("--max-model-len", "256", "--max-request-bytes", str(LIMIT), "--max-num-seqs", "8")
    with serve(*options) as server, httpx.Client(base_url=server.url, timeout=30) as client:

        def answer() -> object:
            return client.post("/v1/chat/completions", json=QUESTION).json()["choices"]

        engine, before = server.engine().pid, answer()
        for case in CASES:
            assert_refused(case, client.post(case.path, content=body_of(case)))
        assert answer() == before
        assert server.engine().pid == engine
        wait_until(lambda: server.load()["held_pages"] == 0, "no page to be held")
