"""Where thinking, tools, constraints and the engine meet: failures that other servers had, one test for each.

1. The end of the thinking comes in the middle of a step's tokens, and the constraint never takes hold:
   `test_the_constraint_waits_for_the_end_of_thinking_wherever_a_step_cuts_it`.
2. A step of many tokens loses arguments of a call, or runs thinking and content together:
   `test_steps_of_any_size_give_the_same_parts`.
5. A request whose grammar is still compiling stops the others: `test_a_grammar_that_compiles_holds_nobody_else_up`.
7. The state of a grammar is not what the tokens say after a request was started again:
   `test_a_call_interrupted_by_an_engines_death_goes_on_where_it_was` (the masks themselves: tests/parsing/
   test_answer_grammar.py, preemption: tests/engine/test_grammar.py).
10. A bad schema is a server error, or the end of the engine: `test_bad_schemas_are_the_clients_errors`.

4 is tested with the Responses endpoint, 6 with the grammar process. 3, 8 and 9 are about drafted tokens.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from http_family import LIMIT_S, MODEL, Family, family, wait_until
from penstock.scheduler.messages import GrammarSpec

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hello there"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]},
    },
}
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"place": "Grüße 😀"}}\n</tool_call>'


def served_with(tokens_per_step: int) -> Iterator[Family]:
    with family(
        engine={"max_model_len": 1024, "tokens_per_step": tokens_per_step},
        tool_call_parser="hermes",
        reasoning_parser="qwen3",
    ) as running:
        yield running


@pytest.fixture
def served() -> Iterator[Family]:
    yield from served_with(1)


def ask(served: Family, **options: object) -> dict:
    reply = served.client.post(CHAT, json={"model": MODEL, "messages": USER, **options})
    assert reply.status_code == 200, reply.text
    return reply.json()


def streamed(served: Family, **options: object) -> dict:
    """What a stream's deltas add up to."""
    body = {"model": MODEL, "messages": USER, "stream": True, **options}
    message = {"content": "", "reasoning_content": "", "arguments": ""}
    for line in served.client.post(CHAT, json=body).text.splitlines():
        if line.startswith("data: {"):
            delta = json.loads(line[6:])["choices"][0]["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", ()):
                message["arguments"] += call["function"]["arguments"]
    return message


@pytest.mark.parametrize("tokens_per_step", [1, 3, 100])
def test_the_constraint_waits_for_the_end_of_thinking_wherever_a_step_cuts_it(tokens_per_step: int) -> None:
    for served in served_with(tokens_per_step):
        served.engine.script = served.ids('<think>\nTwo and two</think>\n\n{"sum": 4}')
        reply = ask(served, response_format=FORM)
        message = reply["choices"][0]["message"]
        assert json.loads(message["content"]) == {"sum": 4}
        assert message["reasoning_content"] == "Two and two"
        grammar = served.engine.seen.submits[-1].sampling.grammar
        # One grammar from the first token on: no step has to notice that the thinking is over.
        thinking, answer = json.loads(grammar.text)["format"]["elements"]
        assert (thinking["type"], answer["type"]) == ("optional", "json_schema")
        script = served.engine.script
        end = next(n for n in range(len(script)) if "</think>" in served.tokenizer.decode(script[:n]))
        assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == end


@pytest.mark.parametrize("tokens_per_step", [2, 7, 100])
def test_steps_of_any_size_give_the_same_parts(tokens_per_step: int) -> None:
    expected = {
        "reasoning_content": "Hm, a place.",
        "content": "I look it up.",
        "arguments": '{"place": "Grüße 😀"}',
    }
    for served in served_with(tokens_per_step):
        served.engine.script = served.ids(f"<think>\nHm, a place.\n</think>\n\nI look it up.\n{CALL}")
        assert streamed(served, tools=[TOOL]) == expected
        message = ask(served, tools=[TOOL])["choices"][0]["message"]
        assert message["content"] == expected["content"]
        assert message["reasoning_content"] == expected["reasoning_content"]
        assert message["tool_calls"][0]["function"]["arguments"] == expected["arguments"]


def test_a_grammar_that_compiles_holds_nobody_else_up(served: Family) -> None:
    served.engine.script = served.ids(CALL)
    served.grammar.hold = True
    replies: list[dict] = []
    waiting = threading.Thread(
        target=lambda: replies.append(ask(served, tools=[TOOL], tool_choice="required")), daemon=True
    )
    waiting.start()
    served.grammar.wait_for(lambda: bool(served.grammar.checks), "the grammar to be asked for")
    assert ask(served)["choices"][0]["finish_reason"] == "stop"
    assert not served.engine.seen.submits[-1].sampling.grammar
    assert not replies
    served.grammar.hold = False
    waiting.join(LIMIT_S)
    assert replies[0]["choices"][0]["message"]["tool_calls"]


def test_a_call_interrupted_by_an_engines_death_goes_on_where_it_was(served: Family) -> None:
    script = served.ids(f"<think>Hm</think>{CALL}")
    served.engine.script = script
    served.engine.allow(len(script) - 14)
    replies: list[dict] = []
    waiting = threading.Thread(
        target=lambda: replies.append(
            streamed(served, tools=[TOOL], tool_choice="required", thinking_token_budget=20)
        ),
        daemon=True,
    )
    waiting.start()
    served.engine.wait_for(lambda: served.engine.steps_allowed == 0, "most of the call")
    wait_until(
        lambda: served.metric("vllm:generation_tokens_total") == len(script) - 14, "its tokens to arrive"
    )
    grammar = served.engine.seen.submits[-1].sampling.grammar
    served.engine.stop()
    served.supervisor.say("restarting", "killed by signal 9", incarnation=1)
    wait_until(lambda: served.client.get("/ready").status_code == 503, "the front end to notice")
    engine = served.new_engine(2, max_model_len=1024, vocab_size=served.tokenizer.get_vocab_size())
    engine.script = script
    waiting.join(LIMIT_S)
    assert replies[0]["arguments"] == '{"place": "Grüße 😀"}'
    assert replies[0]["reasoning_content"] == "Hm"
    resumed = engine.seen.submits[-1]
    assert resumed.sampling.grammar == grammar  # with the tokens so far, all there is to know
    assert len(resumed.tokens) // 4 == resumed.num_prompt_tokens + len(script) - 14


BAD_SCHEMAS = [
    {"type": "nonsense"},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}},
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
    {"type": "object", "properties": {"a": {"not": {"type": "string"}}}},
    {"type": "object", "properties": []},
    {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 1}},
        "required": ["a"],
    },
]


@pytest.mark.parametrize("schema", BAD_SCHEMAS)
def test_bad_schemas_are_the_clients_errors(served: Family, schema: dict) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    for options in ({"tools": [tool], "tool_choice": "required"}, {"response_format": form}):
        reply = served.client.post(CHAT, json={"model": MODEL, "messages": USER, **options})
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["param"].startswith(
            ("tools[0].function.parameters", "response_format.json_schema.schema")
        )
    served.grammar.verdict = lambda spec: ("crash", "the compiler did not survive it")
    tool["function"]["parameters"] = {"type": "object"}
    reply = served.client.post(
        CHAT, json={"model": MODEL, "messages": USER, "tools": [tool], "tool_choice": "required"}
    )
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools")
    served.engine.script = served.ids("Hello")
    assert ask(served)["choices"][0]["message"]["content"] == "Hello"
    assert isinstance(served.grammar.specs[-1], GrammarSpec)
