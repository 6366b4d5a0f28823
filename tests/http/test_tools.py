"""Tools and thinking over a real socket: what the model writes, in steps of one or many tokens, and what clients read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import openai
import pytest
from http_family import MODEL, Family, family

USER = [{"role": "user", "content": "What is the weather?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
TOOLS = [WEATHER, CLOCK]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city":  "Zürich 😀"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
ARGUMENTS = '{"city":  "Zürich 😀"}'
THOUGHT = "<think>\nHm, let me see.\n</think>\n\n"


@pytest.fixture(scope="module", params=[1, 5], ids=["one token a step", "five tokens a step"])
def served(request: pytest.FixtureRequest) -> Iterator[Family]:
    with family(
        engine={"max_model_len": 1024, "tokens_per_step": request.param},
        tool_call_parser="qwen25",
        reasoning_parser="qwen3",
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(served: Family) -> None:
    served.engine.script = None
    served.grammar.verdict = lambda spec: ("ok", "")


@pytest.fixture(scope="module")
def sdk(served: Family) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)


def says(served: Family, text: str) -> None:
    served.engine.script = served.ids(text)


def ask(served: Family, **options: object) -> dict:
    reply = served.client.post("/v1/chat/completions", json={"model": MODEL, "messages": USER, **options})
    assert reply.status_code == 200, reply.text
    return reply.json()


def refusal(served: Family, **options: object) -> tuple[str, str]:
    """(param, message) of a 400."""
    reply = served.client.post("/v1/chat/completions", json={"model": MODEL, "messages": USER, **options})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    return error["param"], error["message"]


def deltas(served: Family, **options: object) -> list[dict]:
    """The first choices of a stream's chunks."""
    body = {"model": MODEL, "messages": USER, "stream": True, **options}
    lines = [line for line in served.client.post("/v1/chat/completions", json=body).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    return [chunk["choices"][0] for line in lines[:-1] if (chunk := json.loads(line[6:]))["choices"]]


def joined(choices: list[dict]) -> dict:
    """The message that a stream adds up to."""
    message: dict = {"content": None, "reasoning_content": None, "tool_calls": []}
    for choice in choices:
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            if delta.get(name) is not None:
                message[name] = (message[name] or "") + delta[name]
        assert delta.get("reasoning") == delta.get("reasoning_content")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                assert call["type"] == "function"
                assert call["function"]["arguments"] == ""
                message["tool_calls"].append({"id": call["id"], **call["function"]})
            else:
                assert set(call) == {"index", "function"}
                message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    return message


def spec(served: Family) -> dict:
    """The structural tag that the engine was given, which has been checked before."""
    grammar = served.engine.seen.submits[-1].sampling.grammar
    assert grammar is not None
    assert grammar in served.grammar.specs
    assert grammar.kind == "structural_tag"
    return json.loads(grammar.text)["format"]


# ------------------------------------------------------------------------------------------------------ tool calls


def test_a_call_is_no_content(served: Family, sdk: openai.OpenAI) -> None:
    says(served, CALL)
    choice = sdk.chat.completions.create(model=MODEL, messages=USER, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert re.fullmatch(r"call_[A-Za-z0-9]{24}", call.id)
    assert (call.type, call.function.name, call.function.arguments) == ("function", "get_weather", ARGUMENTS)
    assert served.engine.seen.submits[-1].sampling.grammar is None  # nothing to enforce under auto


def test_a_stream_adds_up_to_the_whole_answer_byte_for_byte(served: Family) -> None:
    says(served, f"{THOUGHT}I look.\n{CALL}\n{OTHER}")
    whole = ask(served, tools=TOOLS)["choices"][0]
    choices = deltas(served, tools=TOOLS)
    message = joined(choices)
    assert choices[-1]["finish_reason"] == whole["finish_reason"] == "tool_calls"
    assert message["content"] == whole["message"]["content"] == "I look."
    assert message["reasoning_content"] == whole["message"]["reasoning_content"] == "Hm, let me see."
    assert whole["message"]["reasoning"] == "Hm, let me see."
    assert [(call["name"], call["arguments"]) for call in message["tool_calls"]] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in whole["message"]["tool_calls"]
    ]
    assert [call["arguments"] for call in message["tool_calls"]] == [ARGUMENTS, "{}"]
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_the_sdk_reads_a_streamed_call(served: Family, sdk: openai.OpenAI) -> None:
    says(served, CALL)
    with sdk.chat.completions.stream(model=MODEL, messages=USER, tools=TOOLS) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert call.function.arguments == ARGUMENTS
    assert final.choices[0].message.content is None


def test_every_part_has_a_chunk_of_its_own(served: Family) -> None:
    says(served, f"{THOUGHT}Well.{CALL}")
    for choice in deltas(served, tools=TOOLS)[1:]:
        assert len(set(choice["delta"]) - {"reasoning"}) <= 1


def test_text_that_is_no_call_after_all_is_content(served: Family) -> None:
    says(served, "See <tool_call> and <tool_call>\n{nonsense")
    whole = ask(served, tools=TOOLS)["choices"][0]
    assert whole["message"]["content"] == "See <tool_call> and <tool_call>\n{nonsense"
    assert (whole["finish_reason"], "tool_calls" in whole["message"]) == ("stop", False)
    assert joined(deltas(served, tools=TOOLS))["content"] == whole["message"]["content"]


def test_without_tools_a_call_is_text(served: Family) -> None:
    says(served, CALL)
    for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = ask(served, **options)["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")


def test_a_call_cut_off_is_length(served: Family) -> None:
    says(served, CALL)
    choice = ask(served, tools=TOOLS, max_tokens=len(served.ids(CALL)) - 12)["choices"][0]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert ARGUMENTS.startswith(call["function"]["arguments"])


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "get_weather"}}, "stop")],
)
def test_a_named_call_ends_with_stop_a_required_one_with_tool_calls(
    served: Family, choice: object, reason: str
) -> None:
    says(served, CALL)
    whole = ask(served, tools=TOOLS, tool_choice=choice)["choices"][0]
    assert whole["finish_reason"] == reason
    assert whole["message"]["tool_calls"][0]["function"]["arguments"] == ARGUMENTS
    assert deltas(served, tools=TOOLS, tool_choice=choice)[-1]["finish_reason"] == reason


def test_log_probabilities_stay_with_their_parts(served: Family) -> None:
    says(served, f"{THOUGHT}Well. {CALL}")
    whole = ask(served, tools=TOOLS, logprobs=True)["choices"][0]
    expected = [entry["token"] for entry in whole["logprobs"]["content"]]
    streamed = [
        entry["token"]
        for choice in deltas(served, tools=TOOLS, logprobs=True)
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert streamed == expected
    assert len(expected) == len(served.engine.script) + 1


def test_several_choices_have_calls_of_their_own(served: Family) -> None:
    says(served, CALL)
    choices = ask(served, tools=TOOLS, n=3)["choices"]
    assert len({choice["message"]["tool_calls"][0]["id"] for choice in choices}) == 3


# ----------------------------------------------------------------------------------------------------- the grammar


def names(tag: object) -> set[str]:
    """The functions whose calls a structural tag spells out."""
    return set(re.findall(r'\\"name\\": \\"(\w+)\\"', json.dumps(tag)))


def test_required_and_named_calls_are_enforced(served: Family) -> None:
    says(served, CALL)
    ask(served, tools=TOOLS, tool_choice="required")
    assert names(spec(served)) == {"get_weather", "get_time"}
    ask(served, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    assert names(spec(served)) == {"get_weather"}
    assert json.dumps(spec(served)).count('"stop_after_first": true') == 1


def test_allowed_tools_are_the_only_ones(served: Family) -> None:
    says(served, CALL)
    tools = [{"type": "function", "function": {"name": "get_time"}}]
    for mode in ("auto", "required"):
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
        ask(served, tools=TOOLS, tool_choice=choice)
        assert names(spec(served)) == {"get_time"}


def test_strict_tools_are_enforced_under_auto(served: Family) -> None:
    says(served, "Hello")
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    ask(served, tools=[strict, CLOCK])
    assert '"city"' in json.dumps(spec(served))
    assert names(spec(served)) == {"get_weather", "get_time"}


def test_no_parallel_calls_is_at_most_one(served: Family) -> None:
    says(served, CALL)
    ask(served, tools=TOOLS, parallel_tool_calls=False)
    assert '"stop_after_first": true' in json.dumps(spec(served))


def test_a_schema_that_cannot_be_enforced_is_refused_by_name(served: Family) -> None:
    bad = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?<=x)y"}}}
    tools = [CLOCK, {"type": "function", "function": {"name": "f", "parameters": bad}}]
    param, _ = refusal(served, tools=tools, tool_choice="required")
    assert param == "tools[1].function.parameters.properties.a.pattern"
    says(served, "Hello")
    assert ask(served, tools=tools)["choices"][0]["message"]["content"] == "Hello"  # nothing to enforce


def test_a_grammar_that_cannot_be_compiled_is_the_clients_error(served: Family) -> None:
    served.grammar.verdict = lambda spec: ("timeout", "it takes too long")
    tools = [{"type": "function", "function": {"name": "huge"}}]
    param, message = refusal(served, tools=tools, tool_choice="required")
    assert (param, "it takes too long" in message) == ("tools", True)


BAD_CHOICES = [
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice.function.name",
    ),
    ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [WEATHER, CLOCK, WEATHER]}, "tools[2].function.name"),
    (
        {
            "tools": TOOLS,
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
        },
        "tool_choice.allowed_tools.tools",
    ),
]


@pytest.mark.parametrize(("options", "param"), BAD_CHOICES)
def test_choices_that_mean_nothing_are_refused(served: Family, options: dict, param: str) -> None:
    assert refusal(served, **options)[0] == param


# -------------------------------------------------------------------------------------------------------- thinking


def test_thinking_is_apart_and_counted(served: Family) -> None:
    says(served, f"{THOUGHT}Hello")
    reply = ask(served)
    message = reply["choices"][0]["message"]
    assert message["content"] == "Hello"
    assert message["reasoning_content"] == message["reasoning"] == "Hm, let me see."
    counted = reply["usage"]["completion_tokens_details"]["reasoning_tokens"]
    ids = served.ids(f"{THOUGHT}Hello")
    thought = next(n for n in range(1, len(ids)) if "</think>" in served.tokenizer.decode(ids[:n]))
    assert counted == thought
    chunk = joined(deltas(served))
    assert (chunk["reasoning_content"], chunk["content"]) == ("Hm, let me see.", "Hello")


def test_thinking_that_never_ends_is_all_of_it(served: Family) -> None:
    says(served, "<think>Hm, let me see what")
    reply = ask(served, max_tokens=9)
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 9
    assert reply["choices"][0]["message"]["content"] is None


def test_thinking_can_be_left_out(served: Family) -> None:
    says(served, f"{THOUGHT}Hello")
    message = ask(served, include_reasoning=False)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Hello", "refusal": None}
    assert joined(deltas(served, include_reasoning=False))["reasoning_content"] is None


def test_an_answer_without_thinking_has_none(served: Family) -> None:
    says(served, "Hello")
    reply = ask(served)
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert reply["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_a_budget_is_enforced_even_when_nothing_else_is(served: Family) -> None:
    says(served, f"{THOUGHT}Hello")
    ask(served, thinking_token_budget=7)
    assert '"max_tokens": 7' in json.dumps(spec(served))
    ask(served, reasoning_effort="none")
    assert "max_tokens" not in json.dumps(spec(served))
    assert "</think>" in json.dumps(spec(served))
    ask(served, thinking_token_budget=-1)
    assert served.engine.seen.submits[-1].sampling.grammar is None
    assert refusal(served, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})[0] == (
        "reasoning_effort"
    )


def test_pacing_a_stream_changes_no_part_and_no_count(served: Family) -> None:
    says(served, f"{THOUGHT}I look.\n{CALL}")
    options = {"tools": TOOLS, "stream_options": {"include_usage": True}}
    every, paced = deltas(served, **options), deltas(served, **options, stream_interval=9)
    assert len(paced) < len(every)
    messages = [joined(every), joined(paced)]
    for message in messages:
        del message["tool_calls"][0]["id"]
    assert messages[0] == messages[1]


# ------------------------------------------------------------------------------------------------------ many turns


def prompt(served: Family, messages: list[dict], **options: object) -> str:
    says(served, "Hello")
    ask(served, messages=messages, **options)
    submit = served.engine.seen.submits[-1]
    tokens = memoryview(submit.tokens).cast("i").tolist()[: submit.num_prompt_tokens]
    return served.tokenizer.decode(tokens, skip_special_tokens=False)


def test_results_and_calls_of_earlier_turns_reach_the_template(served: Family) -> None:
    says(served, f"{THOUGHT}{CALL}")
    message = ask(served, tools=TOOLS)["choices"][0]["message"]
    result = {
        "role": "tool",
        "tool_call_id": message["tool_calls"][0]["id"],
        "content": [{"type": "text", "text": "sunny"}, {"type": "text", "text": "warm"}],
    }
    text = prompt(served, [*USER, message, result], tools=TOOLS)
    assert "<|im_start|>tool\nsunny\nwarm<|im_end|>" in text
