"""LangChain, Instructor and LiteLLM against the real server, the real engine and the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import instructor
import litellm
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field
from running_server import Running, serve

MODEL = "penstock-demo"
WEATHER_QUESTION = "What is the weather in Paris?"


class Weather(BaseModel):
    """Get the weather in a city."""

    city: str = Field(max_length=40)
    unit: Literal["celsius", "fahrenheit"] = "celsius"


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    tags: list[Literal["old", "young"]] = Field(max_length=2)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve("--dtype", "float32", "--max-num-seqs", "8") as running:
        yield running


@pytest.fixture(scope="module")
def chat(server: Running) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=server.v1, api_key="none", model=MODEL, temperature=0, max_tokens=200, max_retries=0
    )


def test_langchain_invokes_and_streams_the_same_answer(chat: ChatOpenAI) -> None:
    question = [HumanMessage("What is the capital of France?")]
    whole = chat.invoke(question)
    assert "Paris" in whole.text
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in chat.stream(question)) == whole.text


def test_langchain_calls_a_tool_and_goes_on_with_its_result(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([Weather], tool_choice="Weather")
    called = bound.invoke([HumanMessage(WEATHER_QUESTION)])
    (call,) = called.tool_calls
    assert call["name"] == "Weather"
    Weather.model_validate(call["args"])
    streamed = None
    for chunk in bound.stream([HumanMessage(WEATHER_QUESTION)]):
        streamed = chunk if streamed is None else streamed + chunk
    assert [(call["name"], call["args"]) for call in streamed.tool_calls] == [(call["name"], call["args"])]
    history = [
        HumanMessage(WEATHER_QUESTION),
        AIMessage(content="", tool_calls=[call]),
        ToolMessage('{"temperature": 21}', tool_call_id=call["id"]),
    ]
    assert chat.invoke(history).text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_structured_output(chat: ChatOpenAI, method: str) -> None:
    structured = chat.with_structured_output(Person, method=method)
    assert isinstance(structured.invoke("Tell me about Ada, 36."), Person)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_instructor_gets_its_model_at_the_first_attempt(server: Running, mode: instructor.Mode) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=server.v1, api_key="none"), mode=mode)
    person = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell me about Ada, 36."}],
        response_model=Person,
        max_retries=0,
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(person, Person)


def test_litellm_completes_streams_and_calls_tools(server: Running) -> None:
    shared = {"model": f"openai/{MODEL}", "api_base": server.v1, "api_key": "none", "temperature": 0}
    question = [{"role": "user", "content": "What is the capital of France?"}]
    whole = litellm.completion(messages=question, max_tokens=60, **shared)
    text = whole.choices[0].message.content
    assert "Paris" in text
    chunks = litellm.completion(messages=question, max_tokens=60, stream=True, **shared)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    tool = {
        "type": "function",
        "function": {"name": "get_weather", "parameters": Weather.model_json_schema()},
    }
    called = litellm.completion(
        messages=[{"role": "user", "content": WEATHER_QUESTION}],
        tools=[tool],
        tool_choice="required",
        max_tokens=200,
        **shared,
    )
    for call in called.choices[0].message.tool_calls:
        Weather.model_validate(json.loads(call.function.arguments))
    assert called.choices[0].finish_reason == "tool_calls"


def test_litellm_embeds(server: Running) -> None:
    reply = litellm.embedding(
        model=f"openai/{MODEL}",
        input=["one", "two"],
        api_base=server.v1,
        api_key="none",
        encoding_format="float",
    )
    assert len(reply.data) == 2
