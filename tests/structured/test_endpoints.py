"""A constraint goes from the endpoint through the grammar process to the engine, or the request goes nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from http_family import Family, family
from penstock.scheduler.messages import GrammarSpec

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
WRITTEN = '{"type":"object","properties":{"n":{"type":"integer"}},"additionalProperties":false}'


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family() as running:
        yield running


def body(path: str, **fields: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"messages": MESSAGES} if path == CHAT else {"prompt": ["one", "two"]}
    return {**prompt, "max_tokens": 4, **fields}


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
def test_the_engine_gets_the_grammar_that_was_proven(served: Family, path: str, stream: bool) -> None:
    before = len(served.engine.seen.submits)
    fields = {
        "n": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    }
    assert served.client.post(path, json=body(path, stream=stream, **fields)).status_code == 200
    sent = served.engine.seen.submits[before:]
    assert [submit.sampling.grammar for submit in sent] == [GrammarSpec("json_schema", WRITTEN)] * len(sent)
    assert len(sent) == (2 if path == CHAT else 4)
    assert served.grammar.specs[-1] == GrammarSpec("json_schema", WRITTEN)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs.choice"),
        ({"response_format": {"type": "json_object", "schema": {"enum": [1, 2]}}}, "response_format"),
    ],
)
def test_what_the_grammar_process_refuses_is_a_400_that_names_the_field(
    served: Family, path: str, fields: dict[str, Any], param: str
) -> None:
    before = len(served.engine.seen.submits)
    served.grammar.verdict = lambda spec: ("refused", "it is too large")
    try:
        reply = served.client.post(path, json=body(path, **fields))
    finally:
        served.grammar.verdict = lambda spec: ("ok", "")
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert error["message"] == f"{param}: it is too large"
    assert len(served.engine.seen.submits) == before


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_busy_grammar_process_is_a_503_that_says_when_to_come_back(served: Family, path: str) -> None:
    served.grammar.verdict = lambda spec: ("unavailable", "too many grammars wait")
    try:
        reply = served.client.post(path, json=body(path, guided_regex="busy"))
    finally:
        served.grammar.verdict = lambda spec: ("ok", "")
    assert reply.status_code == 503
    assert int(reply.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_schema_that_cannot_be_enforced_reaches_no_other_process(served: Family, path: str) -> None:
    before = len(served.engine.seen.submits), len(served.grammar.specs)
    schema = {"type": "object", "properties": {"tags": {"type": "array", "contains": {"const": 1}}}}
    reply = served.client.post(path, json=body(path, guided_json=schema))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "guided_json.properties.tags.contains")
    assert "`contains`" in error["message"]
    assert (len(served.engine.seen.submits), len(served.grammar.specs)) == before


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_text_format_is_no_constraint(served: Family, path: str) -> None:
    assert served.client.post(path, json=body(path, response_format={"type": "text"})).status_code == 200
    assert served.engine.seen.submits[-1].sampling.grammar is None
