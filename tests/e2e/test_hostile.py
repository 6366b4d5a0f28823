"""A barrage of hostile requests at the real server leaves its answers, its pages and its processes as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fuzzed_bodies import broken
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from malformed import CASES, LIMIT, assert_refused, body_of
from malformed_apis import API_CASES
from penstock.server.api.surface import fields_of
from requests_of_all import RICH, taking_bodies
from running_server import Running, serve, wait_until

LIMIT_S = 5.0
BROKEN = 8  # bodies for each endpoint
QUESTION = {
    "messages": [{"role": "user", "content": "Count from 1 to 9."}],
    "temperature": 0,
    "max_tokens": 40,
    "logprobs": True,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    options = ("--max-model-len", "256", "--max-request-bytes", str(LIMIT), "--max-num-seqs", "8")
    with serve(*options, "--served-model-name", "tiny") as running:
        yield running


def unharmed(server: Running, barrage: Callable[[httpx.Client], None]) -> None:
    """While the barrage lasts and after it another client gets the answers that it got before."""
    with (
        httpx.Client(base_url=server.url, timeout=30) as other,
        httpx.Client(base_url=server.url, timeout=LIMIT_S) as client,
    ):

        def answer() -> object:
            return other.post("/v1/chat/completions", json=QUESTION).json()["choices"]

        engine, before = server.engine().pid, answer()
        with ThreadPoolExecutor(1) as pool:
            firing = pool.submit(barrage, client)
            while not firing.done():
                assert answer() == before
            firing.result()
        assert answer() == before
        assert server.engine().pid == engine
        wait_until(lambda: server.load()["held_pages"] == 0, "no page to be held")


def test_malformed_requests_are_refused_and_change_nothing(server: Running) -> None:
    def barrage(client: httpx.Client) -> None:
        for case in (*CASES, *API_CASES):
            assert_refused(case, client.post(case.path, content=body_of(case)))

    unharmed(server, barrage)


def broken_bodies() -> st.SearchStrategy[tuple[tuple[str, bytes], ...]]:
    """One for each endpoint."""
    return st.tuples(
        *(
            st.tuples(
                st.just(operation.path), broken(RICH[struct], [field.name for field in fields_of(struct)])
            )
            for operation, struct in taking_bodies()
        )
    )


def test_broken_bodies_break_nothing(server: Running) -> None:
    def barrage(client: httpx.Client) -> None:
        @settings(
            max_examples=BROKEN,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(bodies=broken_bodies())
        def fire(bodies: tuple[tuple[str, bytes], ...]) -> None:
            for path, body in bodies:
                reply = client.post(path, content=body)
                assert reply.status_code < 500, (path, body, reply.text)

        fire()

    unharmed(server, barrage)
