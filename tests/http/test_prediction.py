"""A predicted answer reaches the engine as tokens, changes no answer, and shows in the usage."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from http_family import MODEL, Family, family

CHAT = "/v1/chat/completions"
ASKED = {
    "model": MODEL,
    "temperature": 0,
    "max_tokens": 6,
    "messages": [{"role": "user", "content": "Hello there"}],
}
TEXT = "Hello world and all"


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family() as running:
        yield running


def post(served: Family, path: str = CHAT, **body: object) -> dict:
    reply = served.client.post(path, json={**ASKED, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def refusal(served: Family, path: str = CHAT, **body: object) -> dict:
    reply = served.client.post(path, json={**ASKED, **body})
    assert reply.status_code == 400
    return reply.json()["error"]


def sent(served: Family) -> list[int]:
    """The prediction that the engine got with the latest request."""
    return np.frombuffer(served.engine.seen.submits[-1].prediction, np.int32).tolist()


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        [{"type": "text", "text": TEXT}],
        [{"type": "text", "text": part} for part in ("Hello world", " and all")],
    ],
)
def test_the_engine_gets_the_prediction_as_tokens(served: Family, content: object) -> None:
    without = post(served)["choices"]
    assert sent(served) == []
    assert post(served, prediction={"type": "content", "content": content})["choices"] == without
    assert sent(served) == served.ids(TEXT)


def test_every_choice_has_the_prediction(served: Family) -> None:
    post(served, n=2, prediction={"type": "content", "content": TEXT})
    assert [
        np.frombuffer(each.prediction, np.int32).tolist() for each in served.engine.seen.submits[-2:]
    ] == [served.ids(TEXT)] * 2


def test_an_empty_prediction_is_none(served: Family) -> None:
    for content in ("", []):
        usage = post(served, prediction={"type": "content", "content": content})["usage"]
        assert sent(served) == []
        assert "accepted_prediction_tokens" not in usage.get("completion_tokens_details", {})


def test_of_a_prediction_longer_than_any_answer_the_beginning_is_taken(served: Family) -> None:
    post(served, prediction={"type": "content", "content": "Hello " * 200_000})
    longest = served.services.info.max_model_len
    assert sent(served) == served.ids("Hello " * 2 * longest)[:longest]


def test_usage_has_the_counts_where_something_was_predicted(served: Family) -> None:
    details = post(served, prediction={"type": "content", "content": TEXT})["usage"][
        "completion_tokens_details"
    ]
    assert details["accepted_prediction_tokens"] == details["rejected_prediction_tokens"] == 0
    body = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
    with served.client.stream(
        "POST", CHAT, json={**body, "prediction": {"type": "content", "content": TEXT}}
    ) as reply:
        lines = [line[6:] for line in reply.iter_lines() if line]
    details = json.loads(lines[-2])["usage"]["completion_tokens_details"]
    assert {"accepted_prediction_tokens", "rejected_prediction_tokens"} <= details.keys()
    assert "accepted_prediction_tokens" not in post(served)["usage"].get("completion_tokens_details", {})


@pytest.mark.parametrize(
    ("prediction", "param"),
    [
        ("text", "prediction"),
        ({}, "prediction"),
        ({"type": "content"}, "prediction"),
        ({"type": "text", "content": "x"}, "prediction.type"),
        ({"type": "content", "content": 5}, "prediction.content"),
        ({"type": "content", "content": "x", "more": 1}, "prediction"),
        ({"type": "content", "content": [{"type": "image_url"}]}, "prediction.content[0].type"),
        ({"type": "content", "content": [{"type": "text"}]}, "prediction.content[0].text"),
    ],
)
def test_what_is_no_prediction_is_refused_by_name(served: Family, prediction: object, param: str) -> None:
    assert refusal(served, prediction=prediction)["param"].startswith(param)


def test_endpoints_without_predictions_refuse_them(served: Family) -> None:
    body = {"prompt": "Hello", "prediction": {"type": "content", "content": TEXT}}
    assert refusal(served, "/v1/completions", **body)["param"] == "prediction"
    assert refusal(served, "/v1/responses", input="x", prediction=body["prediction"])["param"] == "prediction"
