"""Constrained answers of the embedded model through the real engine: they validate, or were cut at max_tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from grammar_walk import problem
from penstock.server.limits import LimitOptions
from penstock.server.structured.errors import ConstraintError
from penstock.server.structured.schema import check_schema
from running_server import Running, serve
from schema_samples import Samples

NUM_SCHEMAS = 30


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with serve() as running:
        yield running


def sound_schemas() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    seed = 10_000
    while len(found) < NUM_SCHEMAS:
        seed += 1
        schema = Samples(seed).document()
        try:
            check_schema(schema, "schema", LimitOptions())
        except ConstraintError:
            continue
        found.append(schema)
    return found


def ask(served: Running, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me about a dog."}]
    body = {"messages": messages, "max_tokens": 100, "temperature": 1.5, **fields}
    reply = httpx.post(f"{served.v1}/chat/completions", json=body, timeout=120)
    assert reply.status_code == 200, (reply.text, fields)
    answer: dict[str, Any] = reply.json()["choices"][0]
    return answer


def test_answers_validate_unless_they_were_cut(served: Running) -> None:
    schemas = sound_schemas()

    def answer(numbered: tuple[int, dict[str, Any]]) -> dict[str, Any]:
        seed, schema = numbered
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        return ask(served, response_format=form, seed=seed)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, enumerate(schemas)))
    reasons = [reply["finish_reason"] for reply in answers]
    assert set(reasons) <= {"stop", "length"}
    assert reasons.count("stop") > NUM_SCHEMAS // 2
    for schema, reply in zip(schemas, answers, strict=True):
        if reply["finish_reason"] == "stop":
            assert problem(schema, reply["message"]["content"]) is None


def test_other_kinds_of_constraint_are_kept_too(served: Running) -> None:
    assert ask(served, guided_choice=["alpha", "beta"])["message"]["content"] in ("alpha", "beta")
    assert ask(served, guided_regex=r"\d{3}-\d{2}")["message"]["content"].replace("-", "").isdigit()
    assert ask(served, grammar='root ::= "x"{3,5} "!"')["message"]["content"].strip("x") == "!"
    answer = ask(served, response_format={"type": "json_object"})
    assert answer["message"]["content"].startswith("{")
    if answer["finish_reason"] == "stop":
        assert isinstance(json.loads(answer["message"]["content"]), dict)
