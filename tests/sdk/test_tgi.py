"""Hugging Face's InferenceClient, pointed at a server as at text-generation-inference."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from http_family import MODEL, Family, family
from huggingface_hub import InferenceClient
from huggingface_hub.errors import InferenceTimeoutError, OverloadedError, ValidationError
from penstock.scheduler.messages import Rejected

EOS = 2
TEXT = "Grüße 😀🎉 aus München"


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family(generation={"temperature": 0.5, "top_k": 7, "eos_token_id": [EOS, 0]}) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(served: Family) -> None:
    served.engine.script = served.ids(TEXT)
    served.engine.reject = lambda submit: None


@pytest.fixture(scope="module")
def client(served: Family) -> InferenceClient:
    return InferenceClient(base_url=served.url, timeout=10)


def last_sampling(served: Family):
    return served.engine.seen.submits[-1].sampling


def test_text_generation_returns_the_text(served: Family, client: InferenceClient) -> None:
    assert client.text_generation("Hello there") == TEXT
    submit = served.engine.seen.submits[-1]
    prompt = memoryview(submit.tokens).cast("i").tolist()
    assert prompt == served.ids("Hello there")
    assert (submit.sampling.temperature, submit.sampling.max_tokens) == (0.0, 100)
    assert client.text_generation("Hello there", return_full_text=True) == "Hello there" + TEXT


def test_details_name_every_token(served: Family, client: InferenceClient) -> None:
    answer = client.text_generation(
        "Hello there", details=True, decoder_input_details=True, top_n_tokens=2, max_new_tokens=50
    )
    assert answer.generated_text == TEXT
    details = answer.details
    assert (details.finish_reason, details.seed) == ("eos_token", None)
    assert [token.id for token in details.tokens] == [*served.ids(TEXT), EOS]
    assert details.generated_tokens == len(details.tokens)
    assert "".join(token.text for token in details.tokens) == TEXT
    assert [token.special for token in details.tokens] == [False] * (len(details.tokens) - 1) + [True]
    assert {token.logprob for token in details.tokens} == {-0.5}
    assert [len(top) for top in details.top_tokens] == [2] * len(details.tokens)
    assert [token.id for token in details.prefill] == served.ids("Hello there")
    assert "".join(token.text for token in details.prefill) == "Hello there"
    assert [token.logprob for token in details.prefill] == [None] + [-0.5] * (len(details.prefill) - 1)


def test_a_stream_gives_the_text_token_by_token(served: Family, client: InferenceClient) -> None:
    pieces = list(client.text_generation("Hello there", stream=True))
    assert "".join(pieces) == TEXT
    assert len(pieces) == len(served.engine.script) + 1
    events = list(
        client.text_generation(
            "Hello there", stream=True, details=True, top_n_tokens=1, return_full_text=True
        )
    )
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert [event.token.id for event in events] == [*served.ids(TEXT), EOS]
    assert all(event.generated_text is None and event.details is None for event in events[:-1])
    assert events[-1].generated_text == "Hello there" + TEXT
    assert events[-1].details.finish_reason == "eos_token"
    assert events[-1].details.generated_tokens == len(events)
    assert events[-1].details.input_length == len(served.ids("Hello there"))
    assert [len(event.top_tokens) for event in events] == [1] * len(events)


@pytest.mark.parametrize("tokens_per_step", [1, 4])
def test_why_it_ended_is_told_in_tgis_words(tokens_per_step: int) -> None:
    with family(engine={"tokens_per_step": tokens_per_step}) as served:
        client = InferenceClient(base_url=served.url, timeout=10)
        served.engine.script = served.ids("one two three four five six seven")
        for stop, limit, reason, text in (
            (["four"], 50, "stop_sequence", "one two three four"),
            ([], 3, "length", served.tokenizer.decode(served.engine.script[:3])),
            ([], 50, "eos_token", "one two three four five six seven"),
        ):
            asked = {"stop": stop, "max_new_tokens": limit, "details": True}
            answer = client.text_generation("Hello", **asked)
            assert (answer.details.finish_reason, answer.generated_text) == (reason, text)
            *_, ending = events = list(client.text_generation("Hello", stream=True, **asked))
            assert (ending.details.finish_reason, ending.generated_text) == (reason, text)
            assert "".join(event.token.text for event in events) == text
            assert [event.token.id for event in events] == [token.id for token in answer.details.tokens]


def test_sampling_is_asked_for_as_tgi_understands_it(served: Family, client: InferenceClient) -> None:
    answer = client.text_generation(
        "Hello",
        do_sample=True,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        seed=11,
        truncate=1,
        details=True,
    )
    sampling = last_sampling(served)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 5, 0.9)
    assert (sampling.repetition_penalty, sampling.frequency_penalty, sampling.seed) == (1.2, 0.3, 11)
    assert served.engine.seen.submits[-1].num_prompt_tokens == 1
    assert answer.details.seed == 11
    client.text_generation("Hello", top_p=0.5)
    assert (last_sampling(served).temperature, last_sampling(served).top_p) == (1.0, 0.5)
    client.text_generation("Hello", do_sample=True)
    assert (last_sampling(served).temperature, last_sampling(served).top_k) == (1.0, 0)


def test_chat_completion_works_with_and_without_a_model_name(served: Family, client: InferenceClient) -> None:
    messages = [{"role": "user", "content": "Hello there"}]
    for name in ({}, {"model": MODEL}):
        reply = client.chat_completion(messages, max_tokens=50, **name)
        assert reply.choices[0].message.content == TEXT
        assert reply.model == MODEL
        chunks = list(client.chat_completion(messages, max_tokens=50, stream=True, **name))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT


@pytest.mark.parametrize(
    "wish",
    [
        {"typical_p": 0.9},
        {"watermark": True},
        {"best_of": 2},
        {"adapter_id": "x"},
        {"temperature": 0.0},
        {"max_new_tokens": 0},
        {"max_new_tokens": 10_000},
        {"top_n_tokens": 99},
        {"stop": ["x" * 300]},
    ],
    ids=str,
)
def test_what_cannot_be_done_is_a_validation_error(client: InferenceClient, wish: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wish)).replace("max_new_tokens", "max_.*tokens")):
        client.text_generation("Hello", **wish)


def test_refusals_have_tgis_form(served: Family) -> None:
    for path in ("/", "/generate", "/generate_stream"):
        reply = served.client.post(path, json={"inputs": "Hello", "parameters": {"watermark": True}})
        assert reply.status_code == 422
        assert set(reply.json()) == {"error", "error_type"}
        assert reply.json()["error_type"] == "validation"
        assert served.client.post(path, json={"inputs": ""}).status_code == 422
    whole = {"inputs": "Hello", "parameters": {"decoder_input_details": True}}
    assert served.client.post("/generate_stream", json=whole).status_code == 422


def test_a_full_queue_is_an_overloaded_error(served: Family, client: InferenceClient) -> None:
    served.engine.reject = lambda submit: Rejected(submit.request_id, "queue_full", "full", 2.0, 9)
    for stream in (False, True):
        with pytest.raises((OverloadedError, InferenceTimeoutError)):
            list(client.text_generation("Hello", stream=stream))


def test_paths_differ_in_how_they_answer(served: Family) -> None:
    body = {"inputs": "Hello", "stream": True}
    assert served.client.post("/generate", json=body).json() == {"generated_text": TEXT}
    assert served.client.post("/", json={"inputs": "Hello"}).json() == [{"generated_text": TEXT}]
    for path in ("/", "/generate_stream"):
        reply = served.client.post(path, json=body)
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[5:]) for line in reply.text.splitlines() if line]
        assert all(line.startswith("data:") for line in reply.text.splitlines() if line)
        assert events[-1]["generated_text"] == TEXT
        assert events[-1]["details"]["finish_reason"] == "eos_token"


def test_info_tells_the_model_and_its_limits(served: Family) -> None:
    info = served.client.get("/info").json()
    assert info["model_id"] == MODEL
    assert (info["max_input_tokens"], info["max_total_tokens"]) == (255, 256)
    assert info["model_pipeline_tag"] == "text-generation"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def constraint(served: Family, **body: object):
    """What the engine is told where a chat demands it in OpenAI's words."""
    served.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}], **body})
    return last_sampling(served).grammar


def test_a_grammar_is_enforced_as_the_same_response_format_is(
    served: Family, client: InferenceClient
) -> None:
    named = {"name": "n", "schema": SCHEMA}
    schema = constraint(served, response_format={"type": "json_schema", "json_schema": named})
    assert (schema.kind, json.loads(schema.text)["required"]) == ("json_schema", ["a"])
    for grammar in ({"type": "json", "value": SCHEMA}, {"type": "json_schema", "value": named}):
        for stream in (False, True):
            "".join(client.text_generation("Hello", grammar=grammar, stream=stream))
            assert last_sampling(served).grammar == schema
    client.text_generation("Hello", grammar={"type": "regex", "value": "[0-9]+"})
    assert last_sampling(served).grammar == constraint(served, regex="[0-9]+")
    client.text_generation("Hello")
    assert last_sampling(served).grammar is None


def test_the_clients_spelling_of_a_chats_schema_is_enforced(served: Family, client: InferenceClient) -> None:
    named = {"name": "n", "schema": SCHEMA}
    schema = constraint(served, response_format={"type": "json_schema", "json_schema": named})
    for form in ({"type": "json_schema", "json_schema": named}, {"type": "json", "value": SCHEMA}):
        client.chat_completion([{"role": "user", "content": "x"}], response_format=form)
        assert last_sampling(served).grammar == schema
    client.chat_completion(
        [{"role": "user", "content": "x"}], response_format={"type": "regex", "value": "a+"}
    )
    assert last_sampling(served).grammar == constraint(served, regex="a+")


def test_a_grammar_that_cannot_be_enforced_is_a_validation_error(client: InferenceClient) -> None:
    for grammar in ({"type": "json", "value": {"type": "nothing"}}, {"type": "regex", "value": "("}):
        with pytest.raises(ValidationError):
            client.text_generation("Hello", grammar=grammar)
