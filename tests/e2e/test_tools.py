"""Tools through the official SDK, the real server and the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from running_server import Running, serve

MODEL = "penstock-demo"


def tool(name: str, description: str, argument: str, **more: object) -> dict:
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters, **more},
    }


WEATHER = tool("get_weather", "The weather in a city", "city")
CALCULATE = tool("calculate", "Evaluate an expression", "expression")
TOOLS = [WEATHER, CALCULATE]
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve("--dtype", "float32", "--max-num-seqs", "8") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.v1, api_key="not-used", max_retries=0)


def ask(client: openai.OpenAI, **options: object):
    return client.chat.completions.create(
        **{
            "model": MODEL,
            "messages": QUESTION,
            "tools": TOOLS,
            "temperature": 0,
            "max_tokens": 120,
            **options,
        }
    )


def check(call) -> dict:
    """The call's arguments, which fit its schema."""
    arguments = json.loads(call.function.arguments)
    wanted = {"get_weather": {"city"}, "calculate": {"expression"}}[call.function.name]
    assert set(arguments) == wanted
    assert all(isinstance(value, str) for value in arguments.values())
    return arguments


def test_the_model_calls_a_tool_of_its_own_accord_and_uses_the_result(client: openai.OpenAI) -> None:
    choice = ask(client).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.function.name, check(call)) == ("get_weather", {"city": "Paris"})
    result = {
        "role": "tool",
        "tool_call_id": call.id,
        "content": json.dumps({"temperature": 21, "condition": "sunny"}),
    }
    answer = ask(client, messages=[*QUESTION, choice.message, result]).choices[0]
    assert answer.finish_reason == "stop"
    assert "sunny" in answer.message.content


def test_a_required_call_comes_for_a_question_that_needs_none(client: openai.OpenAI) -> None:
    choice = ask(
        client,
        messages=[{"role": "user", "content": "Hello!"}],
        tool_choice="required",
        parallel_tool_calls=False,
    ).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    check(call)


def test_a_named_call_is_that_call_however_hot_the_sampling(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "calculate"}}
    for choice in ask(client, tool_choice=named, temperature=2, seed=5, n=4, max_tokens=400).choices:
        (call,) = choice.message.tool_calls
        assert call.function.name == "calculate"
        if choice.finish_reason != "length":
            assert choice.finish_reason == "stop"
            check(call)


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_stream_gives_the_whole_answers_arguments_byte_for_byte(client: openai.OpenAI, choice: str) -> None:
    whole = ask(client, tool_choice=choice).choices[0].message.tool_calls
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, tools=TOOLS, tool_choice=choice, temperature=0, max_tokens=120
    ) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert [(call.function.name, call.function.arguments) for call in streamed] == [
        (call.function.name, call.function.arguments) for call in whole
    ]


def test_tools_beside_a_response_format_give_a_call_or_the_format(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}},
        "required": ["mood"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema}}
    for question in ("What is the weather in Paris?", "Hello! How are you?"):
        message = (
            ask(client, messages=[{"role": "user", "content": question}], response_format=form)
            .choices[0]
            .message
        )
        if message.tool_calls:
            assert message.content is None
            for call in message.tool_calls:
                check(call)
        else:
            assert json.loads(message.content)["mood"] in ("good", "bad")


def test_strict_tools_cannot_be_called_wrongly(client: openai.OpenAI) -> None:
    strict = tool("get_weather", "The weather in a city", "town", strict=True)
    choice = ask(client, tools=[strict]).choices[0]
    for call in choice.message.tool_calls or ():
        assert set(json.loads(call.function.arguments)) == {"town"}
