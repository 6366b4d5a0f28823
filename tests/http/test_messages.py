"""`/v1/messages` over a real socket: Anthropic's shapes, its order of events, its errors, and what the model is told."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator

import numpy as np
import pytest
from http_family import MODEL, Family, family
from penstock.scheduler.messages import Rejected

HELLO = [{"role": "user", "content": "Hello there"}]
TOOL = {
    "name": "get_weather",
    "description": "The weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family(engine={"max_model_len": 512}) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(served: Family) -> None:
    served.engine.script = served.ids("The answer is 42.")
    served.engine.cached_tokens = 0
    served.engine.reject = lambda submit: None


def ask(served: Family, path: str = "/v1/messages", **body: object):
    return served.client.post(path, json={"model": MODEL, "max_tokens": 50, "messages": HELLO, **body})


def message(served: Family, **body: object) -> dict:
    reply = ask(served, **body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def refusal(served: Family, **body: object) -> str:
    """The message of a 400 in Anthropic's form."""
    reply = ask(served, **body)
    assert reply.status_code == 400, reply.text
    error = reply.json()
    assert set(error) == {"type", "error", "request_id"}
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    return error["error"]["message"]


def events(served: Family, **body: object) -> list[dict]:
    """The events of a stream; each names itself twice."""
    reply = ask(served, stream=True, **body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def prompt(served: Family) -> str:
    """The text of the prompt that the engine got last."""
    submit = served.engine.seen.submits[-1]
    ids = np.frombuffer(submit.tokens, "<i4")[: submit.num_prompt_tokens]
    return served.tokenizer.decode(ids.tolist(), skip_special_tokens=False)


# --------------------------------------------------------------------------------------------------------- whole, streamed


def test_whole_message_has_anthropics_shape(served: Family) -> None:
    served.engine.cached_tokens = 3
    reply = ask(served)
    body = reply.json()
    usage = body.pop("usage")
    assert body == {
        "id": f"msg_{reply.headers['request-id']}",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "The answer is 42."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }
    submit = served.engine.seen.submits[-1]
    assert usage["cache_read_input_tokens"] == 3
    assert usage["cache_creation_input_tokens"] == 0
    assert usage["input_tokens"] == submit.num_prompt_tokens - 3
    assert usage["output_tokens"] == len(served.engine.script) + 1


def test_stream_has_anthropics_order_and_the_whole_messages_content(served: Family) -> None:
    served.engine.cached_tokens = 3
    whole = message(served)
    found = events(served)
    kinds = [event["type"] for event in found]
    deltas = kinds.count("content_block_delta")
    assert deltas > 1
    assert kinds == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = found[0]["message"]
    assert (start["content"], start["stop_reason"], start["role"]) == ([], None, "assistant")
    assert start["usage"]["cache_read_input_tokens"] == 3
    assert start["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert found[1]["content_block"] == {"type": "text", "text": ""}
    texts = [event["delta"] for event in found if event["type"] == "content_block_delta"]
    assert {delta["type"] for delta in texts} == {"text_delta"}
    assert "".join(delta["text"] for delta in texts) == "The answer is 42."
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-2]["usage"] == whole["usage"]


def test_a_long_silence_is_filled_with_anthropics_ping() -> None:
    with family(sse_keep_alive_s=0.01) as running:
        running.engine.script = running.ids("Yes.")
        running.engine.allow(0)
        body = {"model": MODEL, "max_tokens": 5, "messages": HELLO, "stream": True}
        with running.client.stream("POST", "/v1/messages", json=body) as reply:
            lines = reply.iter_lines()
            assert [next(lines) for _ in range(3)] == ["event: ping", 'data: {"type":"ping"}', ""]
            running.engine.allow(None)
            names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert next(name for name in names if name != "ping") == "message_start"
    assert names[-1] == "message_stop"


def test_stop_reasons_say_what_ended_it(served: Family) -> None:
    assert message(served, max_tokens=2)["stop_reason"] == "max_tokens"
    stopped = message(served, stop_sequences=["is", "never"])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "is")
    assert stopped["content"] == [{"type": "text", "text": "The answer "}]


def test_more_tokens_than_the_context_holds_are_cut_to_what_fits(served: Family) -> None:
    served.engine.script = None
    reply = message(served, max_tokens=5000, ignore_eos=True)
    assert reply["stop_reason"] == "model_context_window_exceeded"
    assert reply["usage"]["input_tokens"] + reply["usage"]["output_tokens"] == 512


def test_an_empty_answer_caches_the_prompt_and_says_nothing(served: Family) -> None:
    reply = message(served, max_tokens=0)
    assert (reply["content"], reply["stop_reason"], reply["usage"]["output_tokens"]) == ([], "max_tokens", 0)
    assert served.engine.seen.submits[-1].sampling.max_tokens == 1
    kinds = [event["type"] for event in events(served, max_tokens=0)]
    assert kinds == ["message_start", "message_delta", "message_stop"]


def test_sampling_fields_reach_the_engine(served: Family) -> None:
    message(served, temperature=0.25, top_p=0.5, top_k=7, seed=11, priority=3)
    submit = served.engine.seen.submits[-1]
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.25, 0.5, 7, 11)
    assert submit.priority == 3


# ----------------------------------------------------------------------------------------------------- conversations


def test_system_prompt_and_blocks_become_one_conversation(served: Family) -> None:
    message(
        served,
        system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "three"}]},
            {"role": "user", "content": "four"},
        ],
    )
    assert prompt(served) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n"
        "<|im_start|>assistant\nthree<|im_end|>\n<|im_start|>user\nfour<|im_end|>\n<|im_start|>assistant\n"
    )


def test_consecutive_turns_of_one_role_are_one_turn(served: Family) -> None:
    message(served, messages=[{"role": "user", "content": "one"}, {"role": "user", "content": "two"}])
    assert prompt(served) == "<|im_start|>user\none\ntwo<|im_end|>\n<|im_start|>assistant\n"


def test_a_last_turn_of_the_assistant_is_continued(served: Family) -> None:
    message(served, messages=[*HELLO, {"role": "assistant", "content": "The answer"}])
    assert prompt(served).endswith("<|im_start|>assistant\nThe answer")


@pytest.mark.parametrize(
    "system",
    [
        "x-anthropic-billing-header: cc_version=1; cch=%s\nBe kind.",
        [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=%s;"},
            {"type": "text", "text": "Be kind."},
        ],
    ],
    ids=["line", "block"],
)
def test_attribution_headers_never_reach_the_prompt(served: Family, system: object) -> None:
    for mark in ("abc", "def"):
        message(served, system=json.loads(json.dumps(system).replace("%s", mark)))
        assert prompt(served).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")


def test_tool_results_become_messages_of_their_tools(served: Family) -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1"}
    turns = [*HELLO, {"role": "assistant", "content": [use]}]
    for content, text in (
        ({"content": "sunny"}, "sunny"),
        ({"content": [{"type": "text", "text": "sun"}, {"type": "text", "text": "ny"}]}, "sun\nny"),
        ({"content": "no such city", "is_error": True}, "Error: no such city"),
        ({}, ""),
    ):
        answer = {"role": "user", "content": [{**result, **content}, {"type": "text", "text": "So?"}]}
        message(served, messages=[*turns, answer])
        assert f"<|im_start|>tool\n{text}<|im_end|>\n<|im_start|>user\nSo?<|im_end|>" in prompt(served)
    unknown = {"role": "user", "content": [{**result, "tool_use_id": "toolu_2"}]}
    assert "messages[2].content[0].tool_use_id" in refusal(served, messages=[*turns, unknown])


def test_thinking_of_earlier_turns_is_taken_back_in_every_form(served: Family) -> None:
    turns = [
        *HELLO,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "abc"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "Hi."},
            ],
        },
        {"role": "user", "content": "And?"},
    ]
    assert message(served, messages=turns, thinking={"type": "disabled"})["stop_reason"] == "end_turn"
    assert "<|im_start|>assistant\nHi.<|im_end|>" in prompt(served)


def test_the_template_is_told_whether_to_think(served: Family) -> None:
    message(served, thinking={"type": "adaptive"})
    assert prompt(served).endswith("<|im_start|>assistant\n<think>")
    message(served, thinking={"type": "disabled"})
    assert prompt(served).endswith("<|im_start|>assistant\n")


def test_tokens_are_counted_without_generating(served: Family) -> None:
    message(served, system="Be kind.")
    submits = len(served.engine.seen.submits)
    body = {"model": MODEL, "messages": HELLO, "system": "Be kind."}
    reply = served.client.post("/v1/messages/count_tokens", json=body)
    assert reply.json() == {"input_tokens": served.engine.seen.submits[-1].num_prompt_tokens}
    assert len(served.engine.seen.submits) == submits


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0].type: `image`",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "this model reads text",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "`web_search_20250305`"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "max_tokens: 50 must be greater"),
        ({"stop_sequences": ["x"] * 33}, "stop_sequences: 33 entries"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        (
            {
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
                "output_format": {"type": "json_schema", "schema": {}},
            },
            "output_format: excludes",
        ),
    ],
)
def test_defects_are_named_in_anthropics_words(served: Family, body: dict, said: str) -> None:
    assert said in refusal(served, **body)


def test_a_prompt_that_is_too_long_is_refused_in_the_words_clients_look_for(served: Family) -> None:
    said = refusal(served, messages=[{"role": "user", "content": "one two three " * 200}])
    assert said.startswith("prompt is too long: ")
    assert said.endswith(" tokens > 511 maximum")


def test_every_status_has_anthropics_error(served: Family) -> None:
    missing = ask(served, model="gpt-9")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    method = served.client.get("/v1/messages")
    assert (method.status_code, method.json()["error"]["type"]) == (405, "invalid_request_error")
    nowhere = served.client.get("/v1/messages/batches")
    assert (nowhere.status_code, nowhere.json()["error"]["type"]) == (404, "not_found_error")
    broken = served.client.post("/v1/messages", content=b"{")
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
    assert broken.json()["request_id"] == broken.headers["request-id"]

    served.engine.reject = lambda submit: Rejected(submit.request_id, "queue_full", "full", 2.5, 4)
    for options in ({}, {"stream": True}):
        full = ask(served, **options)
        assert (full.status_code, full.json()["error"]["type"]) == (429, "rate_limit_error")
        assert full.headers["Retry-After"] == "3"


def test_a_body_over_the_limit_is_request_too_large() -> None:
    from penstock.server.limits import LimitOptions

    with family(limits=LimitOptions(max_request_bytes=1024)) as running:
        reply = ask(running, messages=[{"role": "user", "content": "x" * 2000}])
        assert (reply.status_code, reply.json()["error"]["type"]) == (413, "request_too_large")


def test_a_server_that_is_not_ready_is_overloaded() -> None:
    with family(wait=False) as running:
        reply = ask(running)
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "overloaded_error")
        running.engine.start()


def test_either_header_carries_the_key() -> None:
    with family(api_keys=["secret-1", "secret-2"]) as running:
        running.engine.script = running.ids("Yes.")
        body = {"model": MODEL, "max_tokens": 5, "messages": HELLO}
        for headers in (
            {"x-api-key": "secret-2", "anthropic-version": "2023-06-01"},
            {"Authorization": "Bearer secret-1"},
        ):
            assert running.client.post("/v1/messages", json=body, headers=headers).status_code == 200
        for headers in ({}, {"x-api-key": "secret-3"}, {"x-api-key": ""}):
            reply = running.client.post("/v1/messages", json=body, headers=headers)
            assert (reply.status_code, reply.json()["error"]["type"]) == (401, "authentication_error")
            assert "secret" not in reply.text


def test_an_error_after_the_first_event_is_an_event(served: Family) -> None:
    lines: queue.Queue[str] = queue.Queue()
    served.engine.script = None
    served.engine.allow(3)
    try:
        body = {"model": MODEL, "max_tokens": 50, "messages": HELLO, "stream": True}
        with served.client.stream("POST", "/v1/messages", json=body) as reply:
            for line in reply.iter_lines():
                lines.put(line)
                if "content_block_delta" in line and not served.engine.finish_with_error:
                    served.engine.finish_with_error = True
                    served.engine.allow(None)
    finally:
        served.engine.finish_with_error = False
        served.engine.allow(None)
    said = [line for line in lines.queue if line]
    assert said[-2] == "event: error"
    error = json.loads(said[-1].removeprefix("data: "))
    assert error["error"]["type"] == "api_error"
    assert error["request_id"] == reply.headers["request-id"]
