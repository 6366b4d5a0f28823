"""Anthropic's SDK against the real server, the real engine and the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import pytest
from running_server import Running, serve

MODEL = "penstock-demo"
GREEDY = {"temperature": 0}  # the newest SDKs have no field for it
WEATHER = {
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve("--dtype", "float32", "--api-key", "sk-one") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="sk-one", max_retries=0)


def create(client: anthropic.Anthropic, text: str, **options: object) -> anthropic.types.Message:
    return client.messages.create(
        model=MODEL,
        messages=[{"role": "user", "content": text}],
        **{"max_tokens": 40, "extra_body": GREEDY, **options},
    )


def test_the_embedded_model_answers(client: anthropic.Anthropic) -> None:
    reply = create(client, "What is the capital of France?", system="Be kind.")
    (block,) = reply.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert (reply.role, reply.model, reply.stop_reason) == ("assistant", MODEL, "end_turn")
    assert reply._request_id
    assert reply.id == f"msg_{reply._request_id}"


def test_the_streams_events_add_up_to_the_whole_message(client: anthropic.Anthropic) -> None:
    options = {"model": MODEL, "max_tokens": 60, "extra_body": GREEDY}
    messages = [{"role": "user", "content": "Count from 1 to 12."}]
    whole = client.messages.create(messages=messages, **options)
    with client.messages.stream(messages=messages, **options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta", "text"}
    raw = client.messages.create(messages=messages, stream=True, **options)
    texts = [event.delta.text for event in raw if event.type == "content_block_delta"]
    assert "".join(texts) == whole.content[0].text


def test_a_tool_is_called_and_its_result_told(client: anthropic.Anthropic) -> None:
    options = {"model": MODEL, "max_tokens": 60, "extra_body": GREEDY, "tools": [WEATHER]}
    called = client.messages.create(messages=ASKED, **options)
    assert called.stop_reason == "tool_use"
    use = called.content[-1]
    assert (use.type, use.name, use.input) == ("tool_use", "get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": '{"temperature": 21, "sky": "sunny"}'}
    turns = [
        *ASKED,
        {"role": "assistant", "content": called.content},
        {"role": "user", "content": [result]},
    ]
    told = client.messages.create(messages=turns, **options)
    assert told.stop_reason == "end_turn"
    assert told.content[0].text
    with client.messages.stream(messages=ASKED, **options) as stream:
        streamed = stream.get_final_message()
    assert streamed.stop_reason == "tool_use"
    assert streamed.content[-1].input == use.input


def test_a_tool_that_must_be_called_is_called(client: anthropic.Anthropic) -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        reply = create(client, "Hello!", tools=[WEATHER], tool_choice=choice, max_tokens=80)
        assert reply.stop_reason == "tool_use"
        assert [block.type for block in reply.content] == ["tool_use"]
        assert isinstance(reply.content[0].input["city"], str)


def test_an_output_format_is_enforced(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "schema": schema}}
    reply = create(client, "Hello!", output_config=form, max_tokens=250)
    assert reply.stop_reason == "end_turn"
    assert json.loads(reply.content[0].text) in ({"colour": "red"}, {"colour": "blue"})


def test_tokens_are_counted_as_they_are_used(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=ASKED, tools=[WEATHER], system="Be kind.")
    used = client.messages.create(
        model=MODEL, messages=ASKED, tools=[WEATHER], system="Be kind.", max_tokens=1
    ).usage
    assert used.input_tokens + used.cache_read_input_tokens == counted.input_tokens


def test_attribution_headers_do_not_cost_the_prefix_cache(client: anthropic.Anthropic) -> None:
    def ask(mark: str) -> anthropic.types.Usage:
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={mark};"},
            {"type": "text", "text": "You read poems. " * 12, "cache_control": {"type": "ephemeral"}},
        ]
        return create(client, "Hello!", system=system, max_tokens=4).usage

    first, second = ask("a1b2c"), ask("d3e4f")
    whole = first.input_tokens + first.cache_read_input_tokens
    assert second.cache_read_input_tokens > whole - 32
    assert second.input_tokens + second.cache_read_input_tokens == whole


def test_models_are_listed_in_anthropics_shape_too(client: anthropic.Anthropic) -> None:
    (model,) = client.models.list()
    assert (model.id, model.type, model.display_name) == (MODEL, "model", MODEL)
    assert client.models.retrieve(MODEL).created_at == model.created_at


def test_every_error_has_its_class(server: Running, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        create(client, "Hello!", extra_body={"temperature": -1})
    assert bad.value.body["error"]["type"] == "invalid_request_error"
    assert bad.value.request_id == bad.value.body["request_id"]
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="gpt-9", max_tokens=5, messages=ASKED)
    with pytest.raises(anthropic.AuthenticationError):
        create(anthropic.Anthropic(base_url=server.url, api_key="sk-two", max_retries=0), "Hello!")
    with pytest.raises(anthropic.RequestTooLargeError):
        create(client, "x" * (33 << 20))
    bearer = anthropic.Anthropic(base_url=server.url, auth_token="sk-one", max_retries=0)
    assert create(bearer, "Hello!").stop_reason == "end_turn"
