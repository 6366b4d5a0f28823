"""The table of malformed requests: what is sent, and the status and field with which it must be refused.

It is written for a server with a context of 256 tokens, at most `LIMIT` bytes a body, and one model.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import httpx

LIMIT = 20_000
MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


class Case(NamedTuple):
    """A body (JSON value or raw bytes) that must be refused with `status`, naming `param`."""

    path: str
    body: Any
    param: str | None
    status: int = 400


def text(param: str | None, **fields: Any) -> Case:
    return Case(TEXT, {"prompt": "hi", **fields}, param)


def chat(param: str | None, **fields: Any) -> Case:
    return Case(CHAT, {"messages": MESSAGES, **fields}, param)


def message(param: str, **fields: Any) -> Case:
    return Case(CHAT, {"messages": [{"role": "user", "content": "hi", **fields}]}, f"messages[0]{param}")


def raw(body: bytes, param: str | None = None, path: str = TEXT) -> Case:
    return Case(path, body, param)


NOT_JSON = [
    raw(b""),
    raw(b"{"),
    raw(b"hello"),
    raw(b"null"),
    raw(b"[]"),
    raw(b'"hi"'),
    raw(b"42"),
    raw(b'{"prompt": "hi"} trailing'),
    raw(b'{"prompt": "hi",}'),
    raw(b"{'prompt': 'hi'}"),
    raw(b"\xef\xbb\xbf{}"),
    raw(b'{"prompt": "hi", "temperature": NaN}'),
    raw(b'{"prompt": "hi", "temperature": Infinity}'),
    raw(b'{"prompt": "hi", "temperature": 1e999}', "temperature"),
    raw(b'{"prompt": "hi", "max_tokens": ' + b"9" * 30 + b"}", "max_tokens"),
    raw(b'{"prompt": "hi", "max_tokens": ' + b"9" * 5000 + b"}", "max_tokens"),
    raw(b'{"prompt": "hi", "seed": ' + b"9" * 400 + b"}", "seed"),
    raw(b'{"prompt": "\xff\xfe"}', "prompt"),
    raw(b'{"prompt": "hi", "user": "\xff"}'),
    raw(b'{"prompt": "hi", "user": "\\ud800"}'),
    raw(b'{"prompt": "\\ud800"}'),
    raw(b'{"prompt": "hi\x00"}'),
    raw(b'{"prompt": ' + b"[" * 9000 + b"]" * 9000 + b"}"),
    raw(b'{"messages": ' + b'[{"a":' * 1500 + b"1" + b"}]" * 1500 + b"}", None, CHAT),
    raw(b'{"prompt": "hi", "metadata": ' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}"),
    raw(b'{"prompt": "hi", "prompt": "ho"}', "prompt"),
    raw(b'{"prompt": "hi", "n": 1, "n": 2}', "n"),
    raw(b'{"prompt": "hi", "n": 1, "n": 2, "other": "\xff"}'),
    raw(b'{"prompt": "hi", "n": 1, "n": 2, "\xff": 1}'),
    raw(b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "model": "tiny"}', "model", CHAT),
]
PROMPTS = [
    Case(TEXT, {}, "prompt"),
    text("prompt", prompt=None),
    text("prompt", prompt=""),
    text("prompt", prompt=[]),
    text("prompt", prompt=[[]]),
    text("prompt", prompt=[""]),
    text("prompt", prompt=["hi", ""]),
    text("prompt", prompt=True),
    text("prompt", prompt=7),
    text("prompt", prompt={"text": "hi"}),
    text("prompt[1]", prompt=[1, "hi"]),
    text("prompt[1]", prompt=["hi", 1]),
    text("prompt[0]", prompt=[-1]),
    text("prompt[0]", prompt=[1.5]),
    text("prompt[0]", prompt=[True]),
    text("prompt[0]", prompt=[None]),
    text("prompt[0][1]", prompt=[[1, -2]]),
    text("prompt[1]", prompt=[[1], 2]),
    text("prompt[0]", prompt=[2**31]),
    text("prompt", prompt=[99_999]),
    text("prompt", prompt=[[1], [99_999]]),
    text("prompt", prompt=["hi"] * 3000),
    text("prompt", prompt="word " * 300),
    text("prompt", prompt=[5] * 256),
    text("n", prompt=["hi"] * 100, n=100),
]
NUMBERS = [
    text("temperature", temperature=-0.1),
    text("temperature", temperature=101),
    text("temperature", temperature="warm"),
    text("temperature", temperature=[1]),
    text("top_p", top_p=0),
    text("top_p", top_p=1.1),
    text("top_k", top_k=-2),
    text("top_k", top_k=0.5),
    text("min_p", min_p=-0.1),
    text("min_p", min_p=2),
    text("n", n=0),
    text("n", n=-1),
    text("n", n=129),
    text("n", n=10**9),
    text("n", n="2"),
    text("best_of", best_of=3),
    text("max_tokens", max_tokens=0),
    text("max_tokens", max_tokens=-1),
    text("max_tokens", max_tokens=1.5),
    text("max_tokens", max_tokens="10"),
    text("max_tokens", max_tokens=True),
    text("max_tokens", max_tokens=256),
    text("min_tokens", min_tokens=-1),
    text("min_tokens", min_tokens=11, max_tokens=10),
    text("seed", seed=1.5),
    text("seed", seed=2**63),
    text("presence_penalty", presence_penalty=2.1),
    text("frequency_penalty", frequency_penalty=-2.1),
    text("repetition_penalty", repetition_penalty=0),
    text("repetition_penalty", repetition_penalty=-1),
    text("logprobs", logprobs=-1),
    text("logprobs", logprobs=21),
    text("logprobs", logprobs=True),
    text("priority", priority=2**40),
    chat("max_completion_tokens", max_completion_tokens=300),
    chat("max_completion_tokens", max_completion_tokens=3, max_tokens=4),
    chat("top_logprobs", logprobs=True, top_logprobs=21),
    chat("top_logprobs", top_logprobs=2),
    chat("top_logprobs", logprobs=False, top_logprobs=2),
    chat("logprobs", logprobs=2),
]
COLLECTIONS = [
    text("stop", stop=""),
    text("stop[1]", stop=["a", ""]),
    text("stop[0]", stop=[1]),
    text("stop", stop=5),
    text("stop", stop=["x"] * 33),
    text("stop", stop="x" * 257),
    text("stop_token_ids", stop_token_ids=[99_999]),
    text("stop_token_ids[0]", stop_token_ids=[-1]),
    text("stop_token_ids", stop_token_ids=5),
    text("logit_bias", logit_bias={"99999": 1}),
    text("logit_bias", logit_bias={"x": 1}),
    text("logit_bias[...]", logit_bias={"5": 101}),
    text("logit_bias", logit_bias=[1]),
    text("logit_bias", logit_bias={str(token): 1 for token in range(1025)}),
    text("stream", stream="yes"),
    text("stream_options", stream_options={"include_usage": True}),
    text("stream_options.include_usage", stream=True, stream_options={"include_usage": 1}),
    text("stream_options.other", stream=True, stream_options={"other": 1}),
    text("echo", echo="yes"),
    text("cache_salt", cache_salt=""),
    text("cache_salt", cache_salt="a/b"),
    text("cache_salt", cache_salt="x" * 129),
    text("metadata", metadata="x"),
    text("model", model=5),
]
UNSUPPORTED = [
    text("suffix", suffix="x"),
    text("use_beam_search", use_beam_search=True),
    text("guided_regex", guided_regex="a(?=b)"),
    text("guided_json.properties.a.not", guided_json={"type": "object", "properties": {"a": {"not": {}}}}),
    text("structured_outputs", structured_outputs={"regex": "a", "choice": ["b"]}),
    text("structured_outputs.magic", structured_outputs={"magic": "a"}),
    text("regex", guided_json={}, regex="a"),
    text("ebnf", ebnf=""),
    text("ignore_eos", guided_choice=["a"], ignore_eos=True),
    text("allowed_token_ids", allowed_token_ids=[]),
    text("allowed_token_ids", allowed_token_ids=[1, 99_999]),
    text("allowed_token_ids[0]", allowed_token_ids=[-1]),
    text("min_tokens", allowed_token_ids=[2], stop_token_ids=[2], min_tokens=1),
    text("bad_words", bad_words=["a"] * 300),
    text("bad_words[1]", bad_words=["a", "b" * 300]),
    text("bad_words[0]", bad_words=[""]),
    text("logprob_token_ids", logprob_token_ids=[1]),
    text("truncate_prompt_tokens", truncate_prompt_tokens=0),
    text("truncate_prompt_tokens", truncate_prompt_tokens=-2),
    text("truncation_side", truncation_side="left"),
    text("truncation_side", truncate_prompt_tokens=5, truncation_side="middle"),
    text("stream_interval", stream=True, stream_interval=0),
    text("service_tier", service_tier="gold"),
    text("service_tier", service_tier="flex", priority=3),
    text("prompt_logprobs", prompt_logprobs=-1),
    text("prompt_logprobs", prompt_logprobs=99),
    chat("prompt_logprobs", prompt_logprobs=1, stream=True),
    text("repetition_detection.max_pattern_size", repetition_detection={"max_pattern_size": -1}),
    text(
        "repetition_detection.max_pattern_size",
        repetition_detection={"max_pattern_size": 300, "min_count": 2},
    ),
    text(
        "repetition_detection.min_pattern_size",
        repetition_detection={"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2},
    ),
    text("repetition_detection.min_count", repetition_detection={"max_pattern_size": 3}),
    text("repetition_detection.other", repetition_detection={"other": 3}),
    chat("response_format.type", response_format={"type": "xml"}),
    chat("response_format.json_schema.schema", response_format={"type": "json_schema", "json_schema": {}}),
    chat("response_format", response_format={}),
    chat("tool_choice", tools=[TOOL], tool_choice="always"),
    chat("tool_choice", tool_choice={"type": "function", "function": {"name": "f"}}),
    chat("tool_choice.type", tools=[TOOL], tool_choice={"function": {"name": "f"}}),
    chat(
        "tool_choice.function.name", tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}
    ),
    chat("tool_choice", tool_choice="auto"),
    chat("tools", tools=[]),
    chat("tools[0].function", tools=[{"type": "function"}]),
    chat("tools[0].type", tools=[{"type": "browser", "function": {"name": "f"}}]),
    chat("tools[1].function.name", tools=[TOOL, {"type": "function", "function": {"name": ""}}]),
    chat("parallel_tool_calls", tools=[TOOL], parallel_tool_calls="no"),
    chat("tools[1].function.name", tools=[TOOL, TOOL]),
    chat("thinking_token_budget", thinking_token_budget=-2),
    chat("functions", functions=[{"name": "f"}]),
    chat("chat_template", chat_template="{{ 7 * 7 }}"),
    chat("chat_template_kwargs", chat_template_kwargs={"messages": "x"}),
    chat("chat_template_kwargs[...]", chat_template_kwargs={"a": [1]}),
    chat("reasoning_effort", reasoning_effort="enormous"),
    chat("prediction.content[0].type", prediction={"type": "content", "content": [{"type": "image_url"}]}),
    chat("modalities", modalities=["text", "audio"]),
]
CONVERSATIONS = [
    Case(CHAT, {}, "messages"),
    Case(CHAT, {"messages": None}, "messages"),
    Case(CHAT, {"messages": []}, "messages"),
    Case(CHAT, {"messages": "hi"}, "messages"),
    Case(CHAT, {"messages": ["hi"]}, "messages[0]"),
    Case(CHAT, {"messages": [{"content": "hi"}]}, "messages[0].role"),
    Case(CHAT, {"messages": [*MESSAGES, {"role": "user"}]}, "messages[1].content"),
    message(".role", role="wizard"),
    message(".role", role=1),
    message(".content", content=None),
    message(".content", content=5),
    message(".content[0]", content=["hi"]),
    message(".content[0].type", content=[{"text": "hi"}]),
    message(".content[0].type", content=[{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
    message(".content[1].type", content=[{"type": "text", "text": "a"}, {"type": {}}]),
    message(".content[0].text", content=[{"type": "text"}]),
    message(".content[0].text", content=[{"type": "text", "text": 5}]),
    message(".tool_calls", role="assistant", tool_calls="x"),
    message(".tool_calls[0].function", role="assistant", tool_calls=[{"id": "1"}]),
    message(
        ".tool_calls[0].function.arguments",
        role="assistant",
        tool_calls=[{"function": {"name": "f", "arguments": "{oops"}}],
    ),
    chat("continue_final_message", continue_final_message=True),
    chat("continue_final_message", continue_final_message=True, add_generation_prompt=True),
    Case(CHAT, {"messages": [{"role": "user", "content": "word " * 300}]}, "messages"),
]
OTHER = [
    Case(TEXT, {"model": "nobody", "prompt": "hi"}, "model", 404),
    Case(CHAT, {"model": "", "messages": MESSAGES}, "model", 404),
    Case(CHAT, {"model": "../../etc/passwd", "messages": MESSAGES}, "model", 404),
    Case("/v1/nothing", {}, None, 404),
    Case("/v1/completions/", {"prompt": "hi"}, None, 404),
    Case("/v1/models", {}, None, 405),
    Case("/health", {}, None, 405),
    Case("/tokenize", {}, "prompt"),
    Case("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
    Case("/tokenize", {"prompt": 5}, "prompt"),
    Case("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
    Case("/tokenize", {"prompt": "a", "other": 1}, "other"),
    Case("/detokenize", {}, "tokens"),
    Case("/detokenize", {"tokens": "abc"}, "tokens"),
    Case("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    Case("/detokenize", {"tokens": [99_999]}, "tokens"),
    Case(TEXT, {"prompt": "x" * LIMIT}, None, 413),
    Case(CHAT, b"[" * (LIMIT + 1), None, 413),
]
CASES = [*NOT_JSON, *PROMPTS, *NUMBERS, *COLLECTIONS, *UNSUPPORTED, *CONVERSATIONS, *OTHER]


def body_of(case: Case) -> bytes:
    return case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()


ANTHROPIC_TYPES = {404: "not_found_error", 413: "request_too_large"}


def assert_refused(case: Case, reply: httpx.Response) -> None:
    """The reply has the case's status and its API's error body, which names the field and stays on one short line."""
    assert reply.status_code == case.status, reply.text
    body = reply.json()
    match body:
        case {"error": {"param": param, "message": message, "type": kind, "code": code}}:
            assert set(body["error"]) == {"message", "type", "param", "code"}
            assert kind == "invalid_request_error"
            assert code == case.status
            assert param == case.param, body
        case {"type": "error", "error": {"type": kind, "message": message}, "request_id": str()}:
            assert case.path.startswith("/v1/messages")
            assert kind == ANTHROPIC_TYPES.get(case.status, "invalid_request_error")
            assert message.startswith(f"{case.param}: " if case.param else ""), message
        case {"error": str(message), "error_type": "validation"}:
            assert case.status in (413, 422)
            assert message.startswith(f"{case.param}: " if case.param else ""), message
        case _:
            raise AssertionError(body)
    assert message
    assert "\n" not in message
    assert len(reply.content) < 1000
