"""What requests may ask for beyond OpenAI's fields: token ids, prompt log probabilities, bad words, tiers, pacing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import get_args

import pytest
from http_family import MODEL, Family, family
from penstock.scheduler.messages import FinishReason
from penstock.server.metrics.catalogue import Metrics

GREEDY = {"model": MODEL, "temperature": 0}
USER = [{"role": "user", "content": "Hello there"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
EOS = 2


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family() as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(served: Family) -> None:
    served.engine.script = None


def post(served: Family, path: str, **body: object) -> dict:
    """The answer, asked for as a user would for this path."""
    asked = {"messages": USER} if path == CHAT else {"prompt": "Hello"}
    reply = served.client.post(path, json={**GREEDY, "max_tokens": 6, **asked, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def stream(served: Family, path: str, **body: object) -> list[dict]:
    """The parsed events of a stream, which must end with [DONE]."""
    asked = {"messages": USER} if path == CHAT else {"prompt": "Hello"}
    with served.client.stream("POST", path, json={**GREEDY, "stream": True, **asked, **body}) as reply:
        assert reply.status_code == 200, reply.read()
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def last(served: Family):
    return served.engine.seen.submits[-1]


def prompt_of(served: Family) -> list[int]:
    return served.ids("<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n")


# -------------------------------------------------------------------------------------------- what may not come


def test_bad_words_reach_the_engine_as_tokens_with_and_without_a_leading_space(served: Family) -> None:
    post(served, TEXT, bad_words=["quick brown", " Hello", "\n"])
    expected = {tuple(served.ids(text)) for text in ("quick brown", " quick brown", "Hello", " Hello", "\n")}
    assert {tuple(word) for word in last(served).sampling.bad_words} == expected
    assert all(len(word) > 0 for word in expected)


def test_allowed_token_ids_reach_the_engine(served: Family) -> None:
    post(served, CHAT, allowed_token_ids=[9, 5, 9])
    assert last(served).sampling.allowed_token_ids == [5, 9]
    post(served, CHAT)
    assert last(served).sampling.allowed_token_ids == []


def test_rules_that_leave_no_token_are_refused(served: Family) -> None:
    (letter,) = served.ids("a")
    body = {**GREEDY, "prompt": "Hello", "bad_words": ["a"], "allowed_token_ids": [letter]}
    reply = served.client.post(TEXT, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "bad_words")
    assert served.client.post(TEXT, json={**body, "allowed_token_ids": [letter, 5]}).status_code == 200


def test_repetition_detection_reaches_the_engine_with_vllms_defaults(served: Family) -> None:
    post(served, TEXT, repetition_detection={"max_pattern_size": 20, "min_count": 4})
    detection = last(served).sampling.repetition_detection
    assert (detection.max_pattern_size, detection.min_pattern_size, detection.min_count) == (20, 1, 4)
    post(served, TEXT, repetition_detection={"max_pattern_size": 0})
    assert last(served).sampling.repetition_detection is None


@pytest.mark.parametrize("reason", get_args(FinishReason))
def test_every_way_to_end_is_told_and_counted(served: Family, reason: str) -> None:
    before = served.metric("vllm:request_success_total", finished_reason=reason)
    metrics = Metrics()
    metrics.sequence_finished(
        reason,
        now=3.0,
        arrival=1.0,
        first_at=2.0,
        last_at=3.0,
        queue_s=0.1,
        prefill_s=0.1,
        num_output_tokens=2,
    )
    assert metrics.total("vllm:request_success", reason) == 1
    if reason == "error":
        return  # told as an error
    served.engine.finish_reason = reason
    try:
        reply = post(served, TEXT, max_tokens=1)
    finally:
        served.engine.finish_reason = None
    assert reply["choices"][0]["finish_reason"] == reason
    assert served.metric("vllm:request_success_total", finished_reason=reason) == before + 1


# ------------------------------------------------------------------------------------------------- token ids


def test_token_ids_of_prompt_and_output_come_with_whole_answers(served: Family) -> None:
    served.engine.script = served.ids("fine, thank you")
    reply = post(served, CHAT, return_token_ids=True, max_tokens=50, n=2)
    assert reply["prompt_token_ids"] == prompt_of(served)
    for choice in reply["choices"]:
        assert choice["token_ids"] == [*served.engine.script, EOS]
    reply = post(served, TEXT, prompt=[served.ids("Hello"), [5, 6]], return_token_ids=True, max_tokens=50)
    assert [choice["prompt_token_ids"] for choice in reply["choices"]] == [served.ids("Hello"), [5, 6]]
    assert reply["choices"][1]["token_ids"] == [*served.engine.script, EOS]
    assert "token_ids" not in post(served, CHAT)["choices"][0]


@pytest.mark.parametrize("interval", [1, 3])
def test_token_ids_of_a_stream_concatenate_to_those_of_the_whole_answer(
    served: Family, interval: int
) -> None:
    served.engine.script = served.ids("Grüße 😀🎉 und naïve café")
    chunks = stream(served, CHAT, return_token_ids=True, stream_interval=interval)
    assert chunks[0]["prompt_token_ids"] == prompt_of(served)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "token_ids" not in chunks[0]["choices"][0]
    assert not any("prompt_token_ids" in chunk for chunk in chunks[1:])
    told = [chunk["choices"][0]["token_ids"] for chunk in chunks[1:]]
    assert list(chain(*told)) == [*served.engine.script, EOS]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "Grüße 😀🎉 und naïve café"

    chunks = stream(
        served, TEXT, prompt=["Hello", "one"], return_token_ids=True, echo=True, stream_interval=interval
    )
    for index, prompt in enumerate(("Hello", "one")):
        own = [each for chunk in chunks for each in chunk["choices"] if each["index"] == index]
        assert [each["prompt_token_ids"] for each in own if "prompt_token_ids" in each] == [
            served.ids(prompt)
        ]
        assert list(chain(*(each.get("token_ids", []) for each in own))) == [*served.engine.script, EOS]
        assert "".join(each["text"] for each in own) == prompt + "Grüße 😀🎉 und naïve café"


def test_tokens_are_named_by_their_ids_where_asked(served: Family) -> None:
    served.engine.script = [50, 51]
    reply = post(served, CHAT, logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True, max_tokens=2)
    content = reply["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["token_id:50", "token_id:51"]
    assert [top["token"] for top in content[0]["top_logprobs"]] == ["token_id:50", "token_id:51"]
    reply = post(served, TEXT, logprobs=1, return_tokens_as_token_ids=True, max_tokens=2)
    assert reply["choices"][0]["logprobs"]["tokens"] == ["token_id:50", "token_id:51"]
    assert set(reply["choices"][0]["logprobs"]["top_logprobs"][0]) == {"token_id:50"}
    (chunk,) = [
        chunk
        for chunk in stream(served, CHAT, logprobs=True, return_tokens_as_token_ids=True, max_tokens=1)
        if chunk["choices"][0]["logprobs"]
    ]
    assert chunk["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:50"


# -------------------------------------------------------------------------------------------- prompt log probabilities


def test_prompt_logprobs_have_vllms_shape(served: Family) -> None:
    reply = post(served, CHAT, prompt_logprobs=2, n=2)
    prompt = prompt_of(served)
    scored = reply["prompt_logprobs"]
    assert scored[0] is None
    assert len(scored) == len(prompt)
    for token, entry in zip(prompt[1:], scored[1:], strict=True):
        assert entry[str(token)] == {
            "logprob": -0.5,
            "rank": 1,
            "decoded_token": served.tokenizer.decode([token], skip_special_tokens=False),
        }
        assert [each["rank"] for each in entry.values()] == [1, 2]
    assert [submit.sampling.prompt_logprobs for submit in served.engine.seen.submits[-2:]] == [2, -1]
    assert "prompt_logprobs" not in post(served, CHAT)


def test_prompt_logprobs_of_completions_stand_in_each_choice(served: Family) -> None:
    reply = post(served, TEXT, prompt=[[9, 8], [5, 6, 7]], n=2, prompt_logprobs=0)
    lengths = [len(choice["prompt_logprobs"]) for choice in reply["choices"]]
    assert lengths == [2, 2, 3, 3]
    assert [list(entry) for entry in reply["choices"][3]["prompt_logprobs"][1:]] == [["6"], ["7"]]
    both = post(served, TEXT, prompt=[5, 6, 7], prompt_logprobs=3, echo=True, logprobs=1, max_tokens=1)
    (choice,) = both["choices"]
    assert len(choice["prompt_logprobs"][1]) == 3
    assert len(choice["logprobs"]["top_logprobs"][1]) == 1


# ------------------------------------------------------------------------------------------------ shape of the prompt


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, [17, 18, 19]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, [5, 6, 7]),
        ({"truncate_prompt_tokens": 100}, list(range(5, 20))),
    ],
    ids=str,
)
def test_a_prompt_is_cut_to_the_tokens_asked_for(served: Family, fields: dict, kept: list[int]) -> None:
    reply = post(served, TEXT, prompt=list(range(5, 20)), return_token_ids=True, **fields)
    assert reply["choices"][0]["prompt_token_ids"] == kept
    assert reply["usage"]["prompt_tokens"] == len(kept)


def test_a_prompt_too_long_is_cut_to_what_fits_beside_the_answer(served: Family) -> None:
    long = "one two three " * 200
    reply = post(
        served,
        CHAT,
        messages=[{"role": "user", "content": long}],
        truncate_prompt_tokens=-1,
        max_tokens=None,
        max_completion_tokens=20,
    )
    assert reply["usage"]["prompt_tokens"] == 256 - 20
    assert reply["usage"]["completion_tokens"] <= 20


def test_echo_of_a_cut_prompt_is_what_the_model_read(served: Family) -> None:
    reply = post(served, TEXT, prompt="Hello there, how are you", truncate_prompt_tokens=2, echo=True)
    kept = served.tokenizer.decode(served.ids("Hello there, how are you")[-2:])
    assert reply["choices"][0]["text"].startswith(kept)
    assert not reply["choices"][0]["text"].startswith("Hello there, how")


def test_echo_in_chat_begins_the_reply_with_the_message_it_continues(served: Family) -> None:
    served.engine.script = served.ids(" fine, thank you")
    begun = [*USER, {"role": "assistant", "content": "I am"}]
    asked = {"messages": begun, "continue_final_message": True, "echo": True, "max_tokens": 50}
    reply = post(served, CHAT, **asked)
    assert reply["choices"][0]["message"]["content"] == "I am fine, thank you"
    chunks = stream(served, CHAT, **asked)
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "I am fine, thank you"
    )
    assert (
        post(served, CHAT, echo=True, max_tokens=50)["choices"][0]["message"]["content"] == " fine, thank you"
    )


# ------------------------------------------------------------------------------------------------------- pacing


def test_stream_interval_gathers_tokens_into_fewer_events(served: Family) -> None:
    served.engine.script = served.ids("one two three four five six seven eight nine ten")
    count = len(served.engine.script)
    for interval in (1, 4, 1000):
        chunks = stream(served, CHAT, stream_interval=interval, logprobs=True)
        texts = [chunk for chunk in chunks if chunk["choices"][0]["logprobs"]]
        assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in texts) == (
            "one two three four five six seven eight nine ten"
        )
        assert len(texts) <= 2 + (count + 1) // interval
        sizes = [len(chunk["choices"][0]["logprobs"]["content"]) for chunk in texts]
        assert sizes[0] == 1, "the first token does not wait"
        assert set(sizes[1:-1]) <= {interval}
        assert sum(sizes) == count + 1


# ------------------------------------------------------------------------------------------------------- tiers


@pytest.mark.parametrize(
    ("tier", "priority", "used"),
    [
        ("auto", 0, "default"),
        ("default", 0, "default"),
        ("scale", 0, "default"),
        ("flex", 10, "flex"),
        ("priority", -10, "priority"),
    ],
)
def test_a_service_tier_is_a_priority_and_the_reply_names_it(
    served: Family, tier: str, priority: int, used: str
) -> None:
    assert post(served, CHAT, service_tier=tier)["service_tier"] == used
    assert last(served).priority == priority
    assert {chunk["service_tier"] for chunk in stream(served, TEXT, service_tier=tier, max_tokens=2)} == {
        used
    }
    assert "service_tier" not in post(served, TEXT)


def test_the_priority_header_wins_over_the_tier(served: Family) -> None:
    reply = served.client.post(
        TEXT,
        json={**GREEDY, "prompt": "Hello", "max_tokens": 2, "service_tier": "flex"},
        headers={"X-Vllm-Priority": "-3"},
    )
    assert last(served).priority == -3
    assert reply.json()["service_tier"] == "default"
