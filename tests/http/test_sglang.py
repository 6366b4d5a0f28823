"""SGLang's own /generate: text or tokens in, text, tokens and meta_info out, whole or as events with all text so far."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
from http_family import Family, family

EOS = 2
TEXT = "Grüße 😀🎉 aus München"


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(served: Family) -> None:
    served.engine.script = served.ids(TEXT)


def generate(served: Family, **body: object):
    reply = served.client.post("/generate", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_one_prompt_gives_one_answer(served: Family) -> None:
    answer = generate(served, text="Hello", sampling_params={"temperature": 0}, rid="mine")
    assert answer["text"] == TEXT
    assert answer["output_ids"] == [*served.ids(TEXT), EOS]
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "stop", "matched": EOS}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (1, len(answer["output_ids"]))
    assert (meta["id"], meta["cached_tokens"]) == ("mine", 0)
    assert served.engine.seen.submits[-1].sampling.max_tokens == 128


def test_a_batch_gives_a_list_in_its_order(served: Family) -> None:
    served.engine.script = None
    prompts = [[5, 6, 7], [8, 9]]
    wanted = [{"max_new_tokens": 3, "temperature": 0}, {"max_new_tokens": 5, "temperature": 0}]
    answers = generate(served, input_ids=prompts, sampling_params=wanted)
    assert [answer["index"] for answer in answers] == [0, 1]
    for answer, prompt, fields in zip(answers, prompts, wanted, strict=True):
        count = fields["max_new_tokens"]
        assert answer["output_ids"] == served.engine.expected(prompt, count)
        assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": count}
    choices = generate(served, text="Hello", sampling_params={"n": 3, "max_new_tokens": 2})
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert isinstance(generate(served, text=["Hello"], sampling_params={"max_new_tokens": 2}), list)


def test_events_carry_all_text_so_far(served: Family) -> None:
    body = {"text": "Hello", "stream": True, "return_logprob": True, "sampling_params": {"stop": "aus"}}
    reply = served.client.post("/generate", json=body)
    lines = [line for line in reply.text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all(later["text"].startswith(earlier["text"]) for earlier, later in pairwise(events))
    assert [event["meta_info"]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["text"] == "Grüße 😀🎉 "
    assert events[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": "aus"}
    last = events[-1]
    assert [token for _, token, _ in last["meta_info"]["output_token_logprobs"]] == last["output_ids"]


def test_log_probabilities_of_prompt_and_output(served: Family) -> None:
    served.engine.script = [50, 51]
    answers = generate(
        served,
        input_ids=[5, 6, 7],
        return_logprob=True,
        logprob_start_len=1,
        top_logprobs_num=2,
        return_text_in_logprobs=True,
        sampling_params={"max_new_tokens": 2, "n": 2},
    )
    for answer in answers:
        meta = answer["meta_info"]
        name = served.tokenizer.decode([50], skip_special_tokens=False)
        assert meta["output_token_logprobs"][0] == [-0.5, 50, name]
        assert [token for _, token, _ in meta["input_token_logprobs"]] == [6, 7]
        assert [[token for _, token, _ in best] for best in meta["input_top_logprobs"]] == [[6, 7], [7, 8]]
        assert [len(best) for best in meta["output_top_logprobs"]] == [2, 2]
    assert "input_token_logprobs" not in generate(served, text="Hello", return_logprob=True)["meta_info"]


def test_constraints_are_enforced_for_each_prompt(served: Family) -> None:
    wanted = [{"regex": "a+"}, {"json_schema": '{"type": "integer"}'}, {}]
    generate(served, text=["one", "two", "three"], sampling_params=wanted)
    grammars = [submit.sampling.grammar for submit in served.engine.seen.submits[-3:]]
    assert [grammar and grammar.kind for grammar in grammars] == ["regex", "json_schema", None]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": []}, "text"),
        ({"text": 5}, "text"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [1, "x"]}, "input_ids[1]"),
        ({"input_ids": [[1], 2]}, "input_ids[1]"),
        ({"input_ids": [99_999]}, "input_ids"),
        ({"text": "a", "sampling_params": [{}, {}]}, "sampling_params"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"text": ["a", "b"], "sampling_params": [{}, {"n": 2}]}, "sampling_params"),
        ({"text": "a", "sampling_params": {"custom_params": {}}}, "sampling_params.custom_params"),
        ({"text": "a", "sampling_params": {"regex": "("}}, "sampling_params.regex"),
        ({"text": "a", "sampling_params": {"stop_regex": "x"}}, "sampling_params.stop_regex"),
        ({"text": "a", "custom_logit_processor": "gAS"}, "custom_logit_processor"),
        ({"text": "a", "image_data": "x.png"}, "image_data"),
        ({"text": "a", "logprob_start_len": 0}, "logprob_start_len"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": 0, "stream": True}, "logprob_start_len"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(served: Family, body: dict, param: str) -> None:
    reply = served.client.post("/generate", json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_the_body_tells_whose_api_is_meant(served: Family) -> None:
    tgi = served.client.post("/generate", json={"inputs": 'say {"text": "x"}'}).json()
    assert tgi == {"generated_text": TEXT}
    for body in (b"{", b"[]", b'{"neither": 1}'):
        reply = served.client.post("/generate", content=body)
        assert (reply.status_code, reply.json()["error_type"]) == (422, "validation")
