"""Whatever is wrong with a request is the client's to read in one line: status, type, field. The server stays as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx
import pytest
from http_family import Family, family
from malformed import CASES as OPENAI_CASES
from malformed import CHAT, LIMIT, MESSAGES, TEXT, Case, assert_refused, body_of
from malformed_apis import API_CASES
from penstock.server.limits import LimitOptions
from requests_of_all import ALL_TASKS

CASES = [*OPENAI_CASES, *API_CASES]


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family(limits=LimitOptions(max_request_bytes=LIMIT)) as running:
        yield running


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 100


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case.param}" for number, case in enumerate(CASES)])
def test_a_malformed_request_is_refused_by_name(served: Family, case: Case) -> None:
    before = len(served.engine.seen.submits)
    assert_refused(case, served.client.post(case.path, content=body_of(case)))
    assert len(served.engine.seen.submits) == before


def test_what_the_template_refuses_is_the_messages_fault(served: Family) -> None:
    case = Case(CHAT, {"messages": [{"role": "function", "content": "hi"}]}, "messages")
    assert_refused(case, served.client.post(case.path, content=body_of(case)))


def test_afterwards_the_same_prompt_still_gives_the_same_tokens(served: Family) -> None:
    body = {"prompt": "Hello there", "max_tokens": 9, "temperature": 0}
    reply = served.client.post(TEXT, json=body).json()
    assert reply["choices"][0]["text"] == served.text(served.ids("Hello there"), 9)
    assert served.metric("concurrent_requests") == 0
    assert not served.services.link.num_outstanding


def test_a_prompt_that_is_too_long_is_told_both_numbers(served: Family) -> None:
    reply = served.client.post(TEXT, json={"prompt": [5] * 300, "max_tokens": 1}).json()["error"]["message"]
    assert "300" in reply
    assert "256" in reply
    reply = served.client.post(TEXT, json={"prompt": [5] * 200, "max_tokens": 100}).json()["error"]["message"]
    assert all(number in reply for number in ("200", "100", "256", "56"))


def test_the_same_defect_in_a_stream_is_a_plain_error(served: Family) -> None:
    reply = served.client.post(TEXT, json={"prompt": "hi", "stream": True, "temperature": -1})
    assert reply.status_code == 400
    assert reply.headers["content-type"] == "application/json"


def test_a_body_without_a_length_is_stopped_at_the_limit(served: Family) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(LIMIT):
            yield b"[" * 100

    try:
        reply = httpx.post(served.url + TEXT, content=endless(), timeout=10)
    except httpx.WriteError:
        return  # the server has answered and closed while we were still writing
    assert reply.status_code == 413


def test_endless_headers_end_the_connection(served: Family) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="431"):
        httpx.get(served.url + "/health", headers={"x-filler": "x" * 100_000}, timeout=10).raise_for_status()
    assert served.client.get("/health").status_code == 200


def test_keys_are_required_everywhere_but_for_probes() -> None:
    with family(api_keys=["first-key", "second-key"]) as guarded:
        get = guarded.client.get
        assert get("/health").status_code == 200
        assert get("/ready").status_code == 200
        for path in ("/v1/models", "/metrics", "/version", "/nowhere", "/load", "/health_generate"):
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first-key"}):
                reply = get(path, headers=header)
                assert reply.status_code == 401
                assert reply.json()["error"]["type"] == "authentication_error"
        for key in ("first-key", "second-key"):
            assert get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_large_bodies_are_checked_for_double_fields_too() -> None:
    note = r"the \"prompt\" " * 8000
    notes = '{"prompt": "prompt", "n": ["n"]}'
    once = f'{{"prompt": "hi", "max_tokens": 1, "metadata": {notes}, "user": "{note}"}}'
    with family() as running:
        assert running.client.post(TEXT, content=once).status_code == 200
        for more in ('"max_tokens": 1', '"user": "x"', '"prompt": ["n"]'):
            reply = running.client.post(TEXT, content=once[:-1] + ", " + more + "}")
            assert reply.status_code == 400
            assert "twice" in reply.json()["error"]["message"]


def test_unknown_fields_that_cannot_be_read_are_no_error_when_they_are_logged(
    served: Family, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        body = b'{"prompt": "hi", "max_tokens": 1, "known_to_nobody": 1'
        for last, logged in ((b"}", True), (b', "x": "\xff"}', True), (b', "\xff": 1}', False)):
            caplog.clear()
            assert served.client.post(TEXT, content=body + last).status_code == 200
            assert ("known_to_nobody" in caplog.text) == logged


def test_a_text_many_times_longer_than_the_context_is_refused_by_its_beginning() -> None:
    long = "word " * 400_000
    bodies = {
        TEXT: {"prompt": [long]},
        CHAT: {"messages": [{"role": "user", "content": long}]},
        "/v1/responses": {"input": long},
        "/v1/messages/count_tokens": {"model": "tiny", "messages": [{"role": "user", "content": long}]},
        "/v1/embeddings": {"input": ["a", long]},
        "/generate": {"inputs": long},
    }
    with family(engine=ALL_TASKS) as running:
        for path, body in bodies.items():
            reply = running.client.post(path, json=body)
            assert reply.status_code in (400, 422)
            assert "more than" in reply.text
            assert "256" in reply.text
        cut = running.client.post(
            TEXT, json={"prompt": long[:9000], "truncate_prompt_tokens": 5, "max_tokens": 1}
        )
        assert cut.json()["usage"]["prompt_tokens"] == 5
        packed = running.client.post(TEXT, json={"prompt": " " * 9000})
        assert "has " in packed.json()["error"]["message"]  # counted: its beginning says nothing


def test_an_endpoint_that_breaks_answers_in_its_apis_form(
    served: Family, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret at 0x7f00")

    for path, form in ((TEXT, {"error"}), ("/v1/messages", {"type", "error", "request_id"})):
        monkeypatch.setattr("penstock.server.api.endpoint.refuse_duplicates", broken)
        reply = served.client.post(
            path, json={"model": "tiny", "prompt": "hi", "messages": MESSAGES, "max_tokens": 1}
        )
        assert reply.status_code == 500
        assert set(reply.json()) == form
        assert "0x7f00" not in reply.text
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert served.client.post(TEXT, json={"prompt": "hi", "max_tokens": 1}).status_code == 200
