"""OpenAI's SDK and openai-agents on `/v1/responses`: the real server, the real engine and the embedded model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Literal

import agents
import openai
import pytest
from pydantic import BaseModel
from running_server import Running, serve, wait_until

MODEL = "penstock-demo"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "parameters": PARAMETERS,
    "strict": True,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Two front ends: whatever is stored must be found on either."""
    with serve("--dtype", "float32", "--api-workers", "2") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.v1, api_key="not-used", max_retries=0)


def create(client: openai.OpenAI, said: object, **options: object) -> openai.types.responses.Response:
    return client.responses.create(model=MODEL, input=said, **{"temperature": 0, **options})


def other_connection(client: openai.OpenAI) -> openai.OpenAI:
    """The same client on connections of its own, which another front end may serve."""
    return client.with_options(default_headers={"Connection": "close"})


def test_the_embedded_model_answers(client: openai.OpenAI) -> None:
    reply = create(client, "What is the capital of France?", instructions="Be kind.", max_output_tokens=40)
    assert "Paris" in reply.output_text
    assert (reply.status, reply.error, reply.incomplete_details) == ("completed", None, None)
    usage = reply.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_the_streams_events_add_up_to_the_whole_response(client: openai.OpenAI) -> None:
    whole = create(client, "Count from 1 to 12.", max_output_tokens=60)
    with client.responses.stream(
        model=MODEL, input="Count from 1 to 12.", temperature=0, max_output_tokens=60
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.completed"


def test_stored_responses_are_found_on_every_front_end(client: openai.OpenAI) -> None:
    reply = create(client, "Hello!", max_output_tokens=20, metadata={"a": "b"})
    for _ in range(6):
        found = other_connection(client).responses.retrieve(reply.id)
        assert found.output_text == reply.output_text
        assert found.metadata == {"a": "b"}
    items = client.responses.input_items.list(reply.id)
    assert [item.content[0].text for item in items] == ["Hello!"]
    client.responses.delete(reply.id)
    for _ in range(6):
        with pytest.raises(openai.NotFoundError):
            other_connection(client).responses.retrieve(reply.id)


def test_a_chain_remembers_and_reads_the_prefix_cache(client: openai.OpenAI) -> None:
    said = "My name is Anna."
    first = create(client, said, max_output_tokens=40)
    second = create(client, "What is my name?", previous_response_id=first.id, max_output_tokens=40)
    assert "Anna" in second.output_text
    known = first.usage.input_tokens + first.usage.output_tokens
    assert second.usage.input_tokens_details.cached_tokens > known - 32
    items = client.responses.input_items.list(second.id, order="asc")
    assert [item.content[0].text for item in items] == [said, first.output_text, "What is my name?"]


def test_a_function_is_called_and_its_output_told(client: openai.OpenAI) -> None:
    options = {"tools": [WEATHER], "max_output_tokens": 60}
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    called = create(client, asked, **options)
    call = called.output[-1]
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call",
        "get_weather",
        {"city": "Paris"},
    )
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "sunny"}'}
    by_items = create(client, [*asked, *called.output, result], **options)
    by_id = create(client, [result], previous_response_id=called.id, **options)
    assert by_items.output_text == by_id.output_text
    assert by_id.output_text
    with client.responses.stream(model=MODEL, input=asked, temperature=0, **options) as stream:
        kinds = [event.type for event in stream if "function_call" in event.type]
        streamed = stream.get_final_response()
    assert streamed.output[-1].arguments == call.arguments
    assert set(kinds[:-1]) == {"response.function_call_arguments.delta"}
    assert kinds[-1] == "response.function_call_arguments.done"


def test_a_function_that_must_be_called_is_called(client: openai.OpenAI) -> None:
    for choice in (
        "required",
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
    ):
        reply = create(client, "Hello!", tools=[WEATHER], tool_choice=choice, max_output_tokens=80)
        assert [item.type for item in reply.output] == ["function_call"]
        assert isinstance(json.loads(reply.output[0].arguments)["city"], str)


class Colour(BaseModel):
    colour: Literal["red", "blue"]


def test_a_text_format_is_enforced(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(
        model=MODEL, input="Hello!", text_format=Colour, temperature=0, max_output_tokens=250
    )
    assert parsed.output_parsed.colour in ("red", "blue")
    form = {"format": {"type": "json_object"}}
    reply = create(client, "Hello!", text=form, max_output_tokens=250)
    if reply.status == "completed":
        assert isinstance(json.loads(reply.output_text), dict)
    else:
        assert reply.incomplete_details.reason == "max_output_tokens"


def test_an_answer_that_was_cut_off_is_incomplete(client: openai.OpenAI) -> None:
    reply = create(client, "Count from 1 to 12.", max_output_tokens=3)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_background_response_is_polled_and_cancelled(client: openai.OpenAI) -> None:
    begun = create(client, "What is the capital of France?", background=True, max_output_tokens=40)
    assert begun.status == "queued"

    def status(id: str) -> str:
        return other_connection(client).responses.retrieve(id).status

    wait_until(lambda: status(begun.id) == "completed", "the response")
    assert "Paris" in client.responses.retrieve(begun.id).output_text
    endless = create(
        client, "Tell me a story.", background=True, extra_body={"ignore_eos": True}, max_output_tokens=1900
    )
    cancelled = other_connection(client).responses.cancel(endless.id)
    assert cancelled.status == "cancelled"
    assert status(endless.id) == "cancelled"


def test_a_cancellation_reaches_the_engine_from_any_front_end(server: Running, client: openai.OpenAI) -> None:
    ids = [
        create(
            client, f"Story {n}.", background=True, extra_body={"ignore_eos": True}, max_output_tokens=1900
        ).id
        for n in range(4)
    ]
    for id in ids:
        other_connection(client).responses.cancel(id)
    wait_until(lambda: server.load()["num_running_reqs"] == 0, "the engine to be idle")


def test_input_tokens_are_counted_as_they_are_used(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input="Hello!", instructions="Be kind.")
    used = create(client, "Hello!", instructions="Be kind.", max_output_tokens=1).usage
    assert counted.input_tokens == used.input_tokens


def test_errors_have_their_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        create(client, "Hello!", tools=[{"type": "web_search"}])
    assert bad.value.param == "tools[0].type"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-9", input="Hello!")
    with pytest.raises(openai.NotFoundError):
        create(client, "Hello!", previous_response_id="resp_" + "0" * 48)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_calls_its_function_and_answers(server: Running, streamed: bool) -> None:
    called: list[str] = []

    @agents.function_tool
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        called.append(city)
        return '{"sky": "sunny"}'

    agents.set_tracing_disabled(True)
    model = agents.OpenAIResponsesModel(
        MODEL, openai.AsyncOpenAI(base_url=server.v1, api_key="not-used", max_retries=0)
    )
    agent = agents.Agent(
        "weather",
        model=model,
        tools=[get_weather],
        model_settings=agents.ModelSettings(temperature=0, max_tokens=60),
    )

    async def run() -> str:
        if not streamed:
            return str((await agents.Runner.run(agent, "What is the weather in Paris?")).final_output)
        result = agents.Runner.run_streamed(agent, "What is the weather in Paris?")
        async for _ in result.stream_events():
            pass
        return str(result.final_output)

    assert asyncio.run(run())
    assert called == ["Paris"]
