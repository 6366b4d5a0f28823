"""A server that drafts says what one without drafts says: whole or streamed, whatever a request asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from running_server import Running, serve

COPIED = "The puzzle is red, the pepper is busy, and the attic is lucky."
COPY: dict[str, Any] = {"messages": [{"role": "user", "content": f"Echo these words back to me: {COPIED}"}]}
STORY: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell me a short story about a dog."}]}
SCHEMA = {
    "type": "object",
    "properties": {
        "name_of_the_animal": {"type": "string", "maxLength": 12},
        "colour_of_the_animal": {"enum": ["black", "brown", "white"]},
        "is_it_an_animal": {"type": "boolean"},
    },
    "required": ["name_of_the_animal", "colour_of_the_animal", "is_it_an_animal"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TOOLS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [WEATHER],
}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 5}
REQUESTS: dict[str, dict[str, Any]] = {
    "copy": COPY,
    "story": STORY,
    "sampled": {**COPY, **SAMPLED, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
    "many": {**COPY, "n": 3, "temperature": 0.8, "seed": 7},
    "penalties": {**COPY, "presence_penalty": 0.3, "frequency_penalty": 0.2, "repetition_penalty": 1.05},
    "bias": {**COPY, **SAMPLED, "logit_bias": {"300": 2.0}},
    "logprobs": {**COPY, "logprobs": True, "top_logprobs": 2},
    "sampled logprobs": {**STORY, **SAMPLED, "logprobs": True, "top_logprobs": 1},
    "stop": {**COPY, "stop": [" busy, and", "lucky"]},
    "stop within a word": {**COPY, "stop": "epper i"},
    "stop kept": {**COPY, "stop": "pepper", "include_stop_str_in_output": True},
    "late stop": {**COPY, "stop": ["red", "attic"], "min_tokens": 8},
    "short": {**COPY, "max_tokens": 5},
    "shorter": {**COPY, "max_tokens": 2},
    "no end": {**COPY, "ignore_eos": True, "max_tokens": 70},
    "late end": {**COPY, "min_tokens": 40, "max_tokens": 60},
    "schema": {
        **STORY,
        "response_format": {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}},
    },
    "sampled schema": {**STORY, **SAMPLED, "guided_json": SCHEMA},
    "regex": {**COPY, "guided_regex": "(The puzzle is (red|blue), the pepper is busy\\.){1,3}", **SAMPLED},
    "choice": {**COPY, "guided_choice": ["a black dog with a long tail", "a black dog with a short tail"]},
    "tools": TOOLS,
    "required tool": {**TOOLS, "tool_choice": "required", **SAMPLED},
    "prediction": {**COPY, "prediction": {"type": "content", "content": COPIED}},
    "wrong prediction": {
        **COPY,
        "prediction": {"type": "content", "content": COPIED.replace("pepper", "old white lamp")},
    },
    "sampled prediction": {**COPY, **SAMPLED, "prediction": {"type": "content", "content": COPIED}},
}
CONFIG = json.dumps(
    {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_min": 2, "adaptive": False}
)


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def drafting() -> Iterator[Running]:
    with serve("--speculative-config", CONFIG) as running:
        yield running


def body_of(request: dict[str, Any]) -> dict[str, Any]:
    return {"model": "penstock-demo", "temperature": 0, "max_tokens": 80, **request}


def ask(served: Running, request: dict[str, Any]) -> dict[str, Any]:
    reply = httpx.post(f"{served.v1}/chat/completions", json=body_of(request), timeout=120)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def whole(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What each choice of an answer says."""
    return [
        {
            "text": choice["message"]["content"] or "",
            "calls": [call["function"] for call in choice["message"].get("tool_calls", [])],
            "logprobs": (choice["logprobs"] or {}).get("content", []),
            "end": (choice["finish_reason"], choice["stop_reason"]),
        }
        for choice in answer["choices"]
    ]


def streamed(served: Running, request: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The same of a stream, and its usage."""
    body = {**body_of(request), "stream": True, "stream_options": {"include_usage": True}}
    choices: dict[int, dict[str, Any]] = {}
    usage: dict[str, Any] = {}
    with httpx.stream("POST", f"{served.v1}/chat/completions", json=body, timeout=120) as reply:
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk["usage"] or usage
            for choice in chunk["choices"]:
                said = choices.setdefault(choice["index"], {"text": "", "calls": [], "logprobs": []})
                said["text"] += choice["delta"].get("content") or ""
                for call in choice["delta"].get("tool_calls", []):
                    if call["index"] == len(said["calls"]):
                        said["calls"].append({"name": call["function"]["name"], "arguments": ""})
                    said["calls"][call["index"]]["arguments"] += call["function"].get("arguments") or ""
                said["logprobs"] += (choice["logprobs"] or {}).get("content", [])
                if choice["finish_reason"] is not None:
                    said["end"] = (choice["finish_reason"], choice["stop_reason"])
    return [choices[index] for index in sorted(choices)], usage


@pytest.fixture(scope="module")
def expected(plain: Running) -> dict[str, dict[str, Any]]:
    return {name: ask(plain, request) for name, request in REQUESTS.items()}


def test_the_requests_end_in_the_ways_that_are_meant(expected: dict[str, dict[str, Any]]) -> None:
    said = {name: whole(answer)[0] for name, answer in expected.items()}
    assert said["copy"]["text"] == COPIED
    assert said["stop"]["end"] == ("stop", " busy, and")
    assert said["stop within a word"]["end"] == ("stop", "epper i")
    assert said["short"]["end"] == ("length", None)
    assert json.loads(said["tools"]["calls"][0]["arguments"])


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_and_streams_are_those_without_drafts(
    drafting: Running, expected: dict[str, dict[str, Any]], name: str
) -> None:
    without = whole(expected[name])
    answer = ask(drafting, REQUESTS[name])
    assert whole(answer) == without
    said, usage = streamed(drafting, REQUESTS[name])
    assert said == without
    assert usage["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert usage["completion_tokens"] == expected[name]["usage"]["completion_tokens"]


def test_together_they_say_the_same(drafting: Running, expected: dict[str, dict[str, Any]]) -> None:
    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        answers = pool.map(lambda name: (name, whole(ask(drafting, REQUESTS[name]))), REQUESTS)
        for name, said in answers:
            assert said == whole(expected[name]), name


def test_drafts_were_accepted_and_counted(drafting: Running) -> None:
    answer = ask(drafting, {**COPY, "return_metrics": True})
    drafts = answer["metrics"]["speculative_decoding"]
    assert answer["choices"][0]["message"]["content"] == COPIED
    assert drafts["num_accepted_draft_tokens"] > answer["usage"]["completion_tokens"] / 2
    assert drafts["mean_acceptance_length"] > 2
    assert drafts["num_spec_tokens"] == 6


def test_usage_tells_how_a_prediction_fared(drafting: Running) -> None:
    right = ask(drafting, REQUESTS["prediction"])["usage"]
    details = right["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] >= right["completion_tokens"] - 1  # the end is not predicted
    assert details["rejected_prediction_tokens"] == 0
    wrong = ask(drafting, REQUESTS["wrong prediction"])["usage"]["completion_tokens_details"]
    assert wrong["accepted_prediction_tokens"] < details["accepted_prediction_tokens"]
    assert wrong["rejected_prediction_tokens"] > 0
