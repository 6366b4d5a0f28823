"""Thinking, tools and constraints through both block APIs, Messages and Responses, over a real socket."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xgrammar
from http_family import MODEL, Family, family
from penstock.server.api.opaque import unseal

ARGUMENTS = '{"city": "Paris"}'
ANSWER = (
    "<think>\nI should look.\n</think>\n\nOne moment.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": ' + ARGUMENTS + "}\n</tool_call>\n"
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"get_weather": PARAMETERS, "get_time": EMPTY}
ANTHROPIC_TOOLS = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
OPENAI_TOOLS = [{"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()]
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    directory: Path = tmp_path_factory.mktemp("responses")
    with family(
        engine={"max_model_len": 1024},
        responses_dir=str(directory),
        reasoning_parser="qwen3",
        tool_call_parser="hermes",
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(served: Family) -> None:
    served.engine.script = served.ids(ANSWER)


def messages(served: Family, **body: object):
    asked = {"model": MODEL, "max_tokens": 400, "messages": [{"role": "user", "content": "Hello"}]}
    reply = served.client.post("/v1/messages", json={**asked, "tools": ANTHROPIC_TOOLS, **body})
    assert reply.status_code == 200, reply.text
    return reply


def responses(served: Family, **body: object):
    reply = served.client.post(
        "/v1/responses", json={"model": MODEL, "input": "Hello", "tools": OPENAI_TOOLS, **body}
    )
    assert reply.status_code == 200, reply.text
    return reply


def events(reply) -> list[dict]:
    return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]


def runs(kinds: list[str]) -> list[str]:
    """Without repetitions."""
    return [kind for kind, _ in itertools.groupby(kinds)]


def prompt(served: Family) -> str:
    submit = served.engine.seen.submits[-1]
    ids = np.frombuffer(submit.tokens, "<i4")[: submit.num_prompt_tokens]
    return served.tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def allowed(served: Family, text: str) -> bool:
    """Does the grammar that the engine got last take this text, as a whole?"""
    spec = served.engine.seen.submits[-1].sampling.grammar
    assert spec is not None
    assert spec.kind == "structural_tag"
    tokenizer = xgrammar.TokenizerInfo([chr(byte) for byte in range(128)], stop_token_ids=[0])
    compiled = xgrammar.GrammarCompiler(tokenizer).compile_structural_tag(spec.text)
    matcher = xgrammar.GrammarMatcher(compiled)
    return matcher.accept_string(text) and matcher.accept_token(0)


# ----------------------------------------------------------------------------------------------------------- Messages


def test_a_message_has_thinking_text_and_tool_uses(served: Family) -> None:
    body = messages(served).json()
    thinking, text, weather, time = body["content"]
    assert (thinking["type"], thinking["thinking"].strip()) == ("thinking", "I should look.")
    assert thinking["signature"]
    assert (text["type"], text["text"].strip()) == ("text", "One moment.")
    assert (weather["type"], weather["name"], weather["input"]) == (
        "tool_use",
        "get_weather",
        {"city": "Paris"},
    )
    assert (time["name"], time["input"]) == ("get_time", {})
    assert weather["id"].startswith("toolu_")
    assert weather["id"] != time["id"]
    assert body["stop_reason"] == "tool_use"
    thought = body["usage"]["output_tokens_details"]["thinking_tokens"]
    assert 0 < thought < body["usage"]["output_tokens"]


def test_streamed_blocks_are_the_whole_ones(served: Family) -> None:
    whole = messages(served).json()["content"]
    found = events(messages(served, stream=True))
    blocks: list[dict] = []
    for event in found:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                assert event["index"] == len(blocks) - 1
                delta = event["delta"]
                match delta["type"]:
                    case "thinking_delta":
                        blocks[-1]["thinking"] += delta["thinking"]
                    case "signature_delta":
                        blocks[-1]["signature"] = delta["signature"]
                    case "text_delta":
                        blocks[-1]["text"] += delta["text"]
                    case "input_json_delta":
                        blocks[-1]["json"] += delta["partial_json"]
            case "content_block_stop":
                assert event["index"] == len(blocks) - 1
    assert [block.pop("json") for block in blocks] == ["", "", ARGUMENTS, "{}"]
    for streamed, block in zip(blocks, whole, strict=True):
        for mine in (streamed, block):
            mine.pop("id", None)
            mine.pop("input", None)
        assert streamed == block
    kinds = [event["delta"]["type"] for event in found if event["type"] == "content_block_delta"]
    assert runs(kinds) == ["thinking_delta", "signature_delta", "text_delta", "input_json_delta"]
    assert found[-2]["delta"]["stop_reason"] == "tool_use"


def test_thinking_that_is_omitted_comes_back_by_its_signature(served: Family) -> None:
    display = {"type": "adaptive", "display": "omitted"}
    hidden = messages(served, thinking=display).json()["content"][0]
    assert hidden["thinking"] == ""
    assert (unseal(hidden["signature"]) or "").strip() == "I should look."
    assert "should" not in messages(served, thinking=display, stream=True).text


def test_a_tool_use_that_was_cut_off_is_not_lost(served: Family) -> None:
    served.engine.script = served.ids(ANSWER[: ANSWER.index(' "Paris"')])
    count = len(served.engine.script)
    body = messages(served, max_tokens=count).json()
    assert body["stop_reason"] == "max_tokens"
    assert body["content"][-1]["input"] == {"unparsed_arguments": '{"city":'}


def test_forced_tools_are_enforced_behind_the_thinking(served: Family) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    other = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    messages(served, tool_choice={"type": "tool", "name": "get_weather"})
    assert allowed(served, "<think>\nhm\n</think>\n\n" + call)
    assert not allowed(served, "<think>\nhm\n</think>\n\n" + other)
    assert not allowed(served, "<think>\nhm\n</think>\n\nHello")
    messages(served, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert allowed(served, "<think>\nhm\n</think>\n\n" + other)
    assert not allowed(served, "<think>\nhm\n</think>\n\n" + call + "\n" + other)


def test_a_budget_bounds_the_thinking(served: Family) -> None:
    thinking = {"type": "enabled", "budget_tokens": 4}
    messages(served, thinking=thinking, tools=[])
    spec = served.engine.seen.submits[-1].sampling.grammar
    assert spec is not None
    assert '"max_tokens":4' in spec.text.replace(" ", "")


# ---------------------------------------------------------------------------------------------------------- Responses


def test_a_response_has_reasoning_message_and_function_calls(served: Family) -> None:
    body = responses(served).json()
    reasoning, message, weather, time = body["output"]
    assert (reasoning["type"], reasoning["summary"]) == ("reasoning", [])
    assert reasoning["content"][0]["type"] == "reasoning_text"
    assert reasoning["content"][0]["text"].strip() == "I should look."
    assert message["content"][0]["text"].strip() == "One moment."
    assert (weather["type"], weather["name"], weather["arguments"]) == (
        "function_call",
        "get_weather",
        ARGUMENTS,
    )
    assert (time["name"], time["arguments"]) == ("get_time", "{}")
    assert [item["id"].split("_")[0] for item in body["output"]] == ["rs", "msg", "fc", "fc"]
    assert weather["call_id"].startswith("call_")
    usage = body["usage"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]


def test_streamed_items_are_the_whole_ones(served: Family) -> None:
    found = events(responses(served, stream=True))
    assert runs([event["type"].removeprefix("response.") for event in found]) == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
        *("output_item.done", "output_item.added"),
        *("function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    output = found[-1]["response"]["output"]
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == output
    texts = dict.fromkeys((item["id"] for item in output), "")
    for event in found:
        if event["type"].endswith(".delta"):
            texts[event["item_id"]] += event["delta"]
    assert list(texts.values()) == [
        output[0]["content"][0]["text"],
        output[1]["content"][0]["text"],
        ARGUMENTS,
        "{}",
    ]
    (named, _) = [event for event in found if event["type"] == "response.function_call_arguments.done"]
    assert (named["name"], named["arguments"]) == ("get_weather", ARGUMENTS)
    whole = responses(served).json()["output"]
    assert [item.get("content", item.get("arguments")) for item in whole] == [
        item.get("content", item.get("arguments")) for item in output
    ]


def test_reasoning_travels_encrypted_where_nothing_is_stored(served: Family) -> None:
    body = responses(served, store=False, include=["reasoning.encrypted_content"]).json()
    reasoning = body["output"][0]
    assert (unseal(reasoning["encrypted_content"]) or "").strip() == "I should look."
    assert "encrypted_content" not in responses(served).json()["output"][0]


def test_a_call_that_was_cut_off_does_not_block_the_chain(served: Family) -> None:
    count = len(served.ids(ANSWER[: ANSWER.index(' "Paris"')]))
    body = responses(served, max_output_tokens=count).json()
    call = body["output"][-1]
    assert (body["status"], call["status"], call["arguments"]) == ("incomplete", "incomplete", '{"city":')
    responses(served, input="Go on.", previous_response_id=body["id"])
    assert "Go on." in prompt(served)


def test_a_schema_is_enforced_behind_the_reasoning(served: Family) -> None:
    form = {"format": {"type": "json_schema", "name": "colour", "schema": COLOUR, "strict": True}}
    responses(served, text=form, tools=[])
    assert allowed(served, '<think>\nhm\n</think>\n\n{"colour": "red"}')
    assert not allowed(served, '<think>\nhm\n</think>\n\n{"colour": "green"}')
    assert not allowed(served, "<think>\nhm\n</think>\n\nHello")
    config = {"format": {"type": "json_schema", "schema": COLOUR}}
    messages(served, output_config=config, tools=[])
    assert allowed(served, '<think>\nhm\n</think>\n\n{"colour": "blue"}')
    assert not allowed(served, '<think>\nhm\n</think>\n\n{"colour": 1}')


def test_allowed_tools_restrict_the_calls_and_leave_the_prompt_alone(served: Family) -> None:
    responses(served)
    before = prompt(served)
    only = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_time"}]}
    responses(served, tool_choice=only)
    assert prompt(served) == before
    thought = "<think>\nhm\n</think>\n\n"
    assert allowed(served, thought + '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>')
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert not allowed(served, thought + call)


# ------------------------------------------------------------------------------------- requests as coding agents send them


def test_a_request_in_the_form_of_claude_code_is_answered(served: Family) -> None:
    """Its first turn, and the one after a tool ran; the second reads what the first put into the cache."""
    marked = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    body = {
        "model": MODEL,
        "max_tokens": 32000,
        "stream": True,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.9; cch=00001;"},
            {"type": "text", "text": "You are an agent.", **marked},
            {"type": "text", "text": "Use the tools.", **marked},
        ],
        "tools": [
            {
                "name": "get_weather",
                "description": "Get the weather.",
                "input_schema": {"$schema": "http://json-schema.org/draft-07/schema#", **PARAMETERS},
                **marked,
            }
        ],
        "metadata": {"user_id": "user_1_account__session_2"},
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>Be kind.</system-reminder>"},
                    {"type": "text", "text": "What is the weather?", **marked},
                ],
            }
        ],
    }
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
    }
    first = served.client.post("/v1/messages?beta=true", json=body, headers=headers)
    assert first.status_code == 200, first.text
    before = prompt(served)
    assert "billing" not in before
    blocks = messages(served, **{**body, "stream": False}).json()["content"][:3]
    result = {"type": "tool_result", "tool_use_id": blocks[2]["id"], "content": "sunny", "is_error": False}
    body["system"][0]["text"] = "x-anthropic-billing-header: cc_version=2.1.9; cch=00002;"
    body["messages"] += [
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": [{**result, **marked}]},
    ]
    second = served.client.post("/v1/messages?beta=true", json=body, headers=headers)
    assert second.status_code == 200, second.text
    shared = before[: before.index("What is the weather?")]
    assert prompt(served).startswith(shared)
    assert "<|im_start|>tool\nsunny<|im_end|>" in prompt(served)


def test_a_request_in_the_form_of_codex_is_answered(served: Family) -> None:
    body = {
        "model": MODEL,
        "instructions": "You are an agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        ],
        "tools": [{**tool, "strict": False, "description": "A tool."} for tool in OPENAI_TOOLS],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "text": {"verbosity": "low"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0197a3e5-0000-7000-8000-000000000000",
        "client_metadata": {"session": "1"},
    }
    found = events(responses(served, **body))
    output = found[-1]["response"]["output"]
    calls = [item for item in output if item["type"] == "function_call"]
    results = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"} for call in calls
    ]
    returned = [{name: item[name] for name in item if name != "id"} for item in output]
    again = events(responses(served, **{**body, "input": [*body["input"], *returned, *results]}))
    assert again[-1]["type"] == "response.completed"
    assert prompt(served).count("<|im_start|>tool\nsunny<|im_end|>") == len(calls)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/responses",
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"pattern": 1}}}},
            "text.format.schema",
        ),
        (
            "/v1/responses",
            {"tools": [{**OPENAI_TOOLS[0], "strict": True, "parameters": {"properties": 1}}]},
            "tools[0].parameters",
        ),
        (
            "/v1/responses",
            {"tool_choice": {"type": "function", "name": "f"}, "tools": OPENAI_TOOLS},
            "tool_choice.name",
        ),
        (
            "/v1/messages",
            {"tools": [{"name": "f", "strict": True, "input_schema": {"properties": 1}}]},
            "tools[0].input_schema",
        ),
        (
            "/v1/messages",
            {"output_config": {"format": {"type": "json_schema", "schema": {"pattern": 1}}}},
            "output_config.format.schema",
        ),
    ],
)
def test_defects_of_schemas_are_named_where_the_client_wrote_them(
    served: Family, path: str, body: dict, param: str
) -> None:
    user = [{"role": "user", "content": "Hello"}]
    base = {"input": "Hello"} if path == "/v1/responses" else {"messages": user, "max_tokens": 50}
    reply = served.client.post(path, json={"model": MODEL, **base, **body})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"].startswith(param)
