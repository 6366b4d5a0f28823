"""`/v1/responses` over a real socket: OpenAI's shapes and order of events, the store, and what the model is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from http_family import LIMIT_S, MODEL, Family, family, wait_until
from penstock.scheduler.messages import Rejected
from penstock.server.config import ResponseStoreOptions

TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    directory = tmp_path_factory.mktemp("responses")
    with family(engine={"max_model_len": 512}, responses_dir=str(directory)) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(served: Family) -> None:
    served.engine.script = served.ids("The answer is 42.")
    served.engine.cached_tokens = 0
    served.engine.reject = lambda submit: None
    served.engine.allow(None)


def ask(served: Family, path: str = "/v1/responses", **body: object):
    return served.client.post(path, json={"model": MODEL, "input": "Hello there", **body})


def response(served: Family, **body: object) -> dict:
    reply = ask(served, **body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def refusal(served: Family, **body: object) -> dict:
    reply = ask(served, **body)
    assert reply.status_code == 400, reply.text
    return reply.json()["error"]


def events(served: Family, **body: object) -> list[dict]:
    """The events of a stream; each names itself twice, and they are numbered."""
    reply = ask(served, stream=True, **body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(found)
        found.append(event)
    return found


def get(served: Family, id: str, path: str = "", **options: object):
    return served.client.get(f"/v1/responses/{id}{path}", **options)


def prompt(served: Family) -> str:
    """The text of the prompt that the engine got last."""
    submit = served.engine.seen.submits[-1]
    ids = np.frombuffer(submit.tokens, "<i4")[: submit.num_prompt_tokens]
    return served.tokenizer.decode(ids.tolist(), skip_special_tokens=False)


# ----------------------------------------------------------------------------------------------------- whole, streamed


def test_whole_response_has_openais_shape(served: Family) -> None:
    served.engine.cached_tokens = 3
    body = response(served, temperature=0.25, metadata={"a": "b"}, max_output_tokens=50)
    (item,) = body["output"]
    assert body["id"].startswith("resp_")
    assert item["id"].startswith("msg_")
    assert item == {
        "id": item["id"],
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "The answer is 42.", "annotations": [], "logprobs": []}],
    }
    assert (body["object"], body["status"], body["error"]) == ("response", "completed", None)
    assert (body["temperature"], body["metadata"]) == (0.25, {"a": "b"})
    num_prompt, num_output = served.engine.seen.submits[-1].num_prompt_tokens, len(served.engine.script) + 1
    assert body["usage"] == {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": num_output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_prompt + num_output,
    }


def test_stream_has_openais_order_and_ends_with_the_whole_response(served: Family) -> None:
    found = events(served)
    kinds = [event["type"] for event in found]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 1
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    created, whole = found[0]["response"], found[-1]["response"]
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    assert created["id"] == whole["id"]
    text = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    (item,) = whole["output"]
    assert text == item["content"][0]["text"] == found[-4]["text"] == "The answer is 42."
    assert found[2]["item"] == {
        "id": item["id"],
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }
    assert found[-2]["item"] == item
    assert {event["item_id"] for event in found if "item_id" in event} == {item["id"]}
    assert get(served, whole["id"]).json() == whole  # it was there before the last event was


def test_an_answer_that_was_cut_off_is_incomplete(served: Family) -> None:
    body = response(served, max_output_tokens=2)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    found = events(served, max_output_tokens=2)
    assert found[-1]["type"] == "response.incomplete"
    assert found[-1]["response"]["output"][0]["content"] == body["output"][0]["content"]


def test_logprobs_come_where_they_are_asked_for(served: Family) -> None:
    options = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    (item,) = response(served, **options)["output"]
    entries = item["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in entries) == "The answer is 42."
    assert {len(entry["top_logprobs"]) for entry in entries} == {2}
    found = events(served, **options)
    streamed = [entry for event in found if "delta" in event for entry in event["logprobs"]]
    assert streamed == entries
    (done,) = [event for event in found if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == entries


def test_an_error_after_the_first_event_is_a_failed_response(served: Family) -> None:
    served.engine.script = None
    served.engine.allow(3)
    lines = []
    try:
        body = {"model": MODEL, "input": "Hello", "stream": True}
        with served.client.stream("POST", "/v1/responses", json=body) as reply:
            for line in reply.iter_lines():
                lines.append(line)
                if "output_text.delta" in line:
                    served.engine.finish_with_error = True
                    served.engine.allow(None)
    finally:
        served.engine.finish_with_error = False
    said = [line for line in lines if line]
    assert said[-2] == "event: response.failed"
    failed = json.loads(said[-1].removeprefix("data: "))["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert get(served, failed["id"]).json()["status"] == "failed"


def test_a_refusal_is_a_plain_error_streamed_or_not(served: Family) -> None:
    served.engine.reject = lambda submit: Rejected(submit.request_id, "queue_full", "full", 2.5, 4)
    for options in ({}, {"stream": True}):
        full = ask(served, **options)
        assert (full.status_code, full.json()["error"]["type"]) == (429, "rate_limit_exceeded")
        assert full.headers["Retry-After"] == "3"


# -------------------------------------------------------------------------------------------------------------- items


def test_items_become_one_conversation(served: Family) -> None:
    response(
        served,
        instructions="Be kind.",
        input=[
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [{"type": "input_text", "text": "What is the weather?"}]},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "hm"}],
            },
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
            },
            {
                "type": "function_call",
                "call_id": "call_1",
                "name": "get_weather",
                "arguments": '{"city":"P"}',
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
            {"role": "user", "content": "And?"},
        ],
    )
    assert prompt(served) == (
        "<|im_start|>system\nBe kind.\n\nBe short.<|im_end|>\n<|im_start|>user\nWhat is the weather?<|im_end|>\n"
        "<|im_start|>assistant\nLet me see.<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"input": None}, "input", "required"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "reads text",
        ),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "`web_search_call`"),
        ({"input": [{"content": "x"}]}, "input[0].type", "required"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[1"}]},
            "input[0].arguments",
            "JSON object",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "input[0].call_id",
            "no function_call",
        ),
        ({"tools": [{"type": "web_search_preview"}]}, "tools[0].type", "`web_search_preview`"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "required"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice.type", "`file_search`"),
        ({"include": ["everything"]}, "include[0]", "`everything`"),
        ({"conversation": "conv_1"}, "conversation", "OpenAI's servers"),
        ({"prompt": {"id": "p"}}, "prompt", "OpenAI's servers"),
        ({"n": 2}, "n", "no place"),
        ({"background": True, "stream": True}, "stream", "background"),
        ({"background": True, "store": False}, "store", "background"),
        ({"max_output_tokens": 0}, "max_output_tokens", ""),
        ({"max_output_tokens": 600}, "max_output_tokens", "512"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "required"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", ""),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"input": "one two three " * 300}, "input", "512"),
    ],
)
def test_defects_are_named_in_the_words_of_responses(
    served: Family, body: dict, param: str, said: str
) -> None:
    error = refusal(served, **body)
    assert error["param"] == param
    assert said in error["message"]
    assert error["message"].startswith(param)


def test_auto_truncation_drops_the_oldest_items_alone(served: Family) -> None:
    turns = [
        {"role": role, "content": f"{number} " + "one two three " * 8}
        for number in range(20)
        for role in ("user", "assistant")
    ]
    last = {"role": "user", "content": "And now?"}
    options = {"input": [*turns, last], "instructions": "Be kind.", "max_output_tokens": 20}
    assert "512" in refusal(served, **options)["message"]
    response(served, **options, truncation="auto")
    text = prompt(served)
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>")
    assert text.endswith("<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n")
    kept = served.engine.seen.submits[-1].num_prompt_tokens
    longest = max(len(served.ids(turn["content"])) for turn in turns) + 12
    assert 512 - 20 - longest < kept <= 512 - 20


def test_input_tokens_are_counted_without_generating(served: Family) -> None:
    response(served, instructions="Be kind.")
    submits = len(served.engine.seen.submits)
    reply = ask(served, "/v1/responses/input_tokens", instructions="Be kind.")
    wanted = served.engine.seen.submits[-1].num_prompt_tokens
    assert reply.json() == {"object": "response.input_tokens", "input_tokens": wanted}
    assert len(served.engine.seen.submits) == submits


# ------------------------------------------------------------------------------------------------------------- the store


def test_a_chain_repeats_what_was_said_word_for_word(served: Family) -> None:
    first = response(served, instructions="Be kind.")
    before = prompt(served)
    second = response(served, instructions="Be kind.", input="And?", previous_response_id=first["id"])
    said = "The answer is 42.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt(served) == before + said
    assert second["previous_response_id"] == first["id"]
    response(served, input="So?", previous_response_id=second["id"])
    assert "Be kind." not in prompt(served)  # instructions are not carried over
    assert prompt(served).count("The answer is 42.") == 2


def test_a_deleted_response_still_has_its_successors(served: Family) -> None:
    first = response(served)
    second = response(served, input="And?", previous_response_id=first["id"])
    deleted = served.client.delete(f"/v1/responses/{first['id']}")
    assert deleted.json() == {"id": first["id"], "object": "response", "deleted": True}
    for reply in (
        get(served, first["id"]),
        served.client.delete(f"/v1/responses/{first['id']}"),
        served.client.post(f"/v1/responses/{first['id']}/cancel"),
        get(served, first["id"], "/input_items"),
        ask(served, previous_response_id=first["id"]),
    ):
        assert (reply.status_code, reply.json()["error"]["type"]) == (404, "invalid_request_error")
    response(served, input="So?", previous_response_id=second["id"])
    assert prompt(served).count("The answer is 42.") == 2


def test_input_items_come_in_pages(served: Family) -> None:
    first = response(served, input=[{"role": "user", "content": text} for text in "abc"])
    second = response(served, input="d", previous_response_id=first["id"])
    whole = get(served, second["id"], "/input_items", params={"order": "asc"}).json()
    texts = [item["content"][0]["text"] for item in whole["data"]]
    assert texts == ["a", "b", "c", "The answer is 42.", "d"]
    assert not whole["has_more"]
    ids = [item["id"] for item in whole["data"]]
    assert (whole["first_id"], whole["last_id"]) == (ids[0], ids[-1])
    seen: list[str] = []
    more = True
    while more:
        page = get(
            served, second["id"], "/input_items", params={"limit": 2, **({"after": seen[-1]} if seen else {})}
        ).json()
        seen += [item["id"] for item in page["data"]]
        more = page["has_more"]
    assert seen == ids[::-1]
    for wrong in ({"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"order": "up"}, {"after": "msg_x"}):
        assert get(served, first["id"], "/input_items", params=wrong).status_code == 400


@pytest.mark.parametrize("id", ["resp_", "resp_" + "0" * 48, "..%2f..%2flock", "x" * 300, "resp_%00"])
def test_ids_that_are_none_are_not_found(served: Family, id: str) -> None:
    assert get(served, id).status_code == 404


def test_what_is_not_to_be_stored_is_not(served: Family) -> None:
    body = response(served, store=False)
    assert not body["store"]
    assert get(served, body["id"]).status_code == 404


def test_responses_belong_to_the_key_that_made_them(tmp_path: Path) -> None:
    with family(api_keys=["one", "two"], responses_dir=str(tmp_path)) as running:
        running.engine.script = running.ids("Yes.")
        mine, other = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        body = {"model": MODEL, "input": "Hello"}
        id = running.client.post("/v1/responses", json=body, headers=mine).json()["id"]
        assert get(running, id, headers=mine).status_code == 200
        assert get(running, id, headers=other).status_code == 404
        chained = {**body, "previous_response_id": id}
        assert running.client.post("/v1/responses", json=chained, headers=other).status_code == 404
        assert running.client.delete(f"/v1/responses/{id}", headers=other).status_code == 404
        assert running.client.post(f"/v1/responses/{id}/cancel", headers=other).status_code == 404
        assert get(running, id, headers=mine).status_code == 200
        (file,) = tmp_path.glob("*.json")
        assert file.stat().st_mode & 0o777 == 0o600
        assert b"one" not in file.read_bytes()


def test_without_a_store_only_wishes_for_one_are_refused() -> None:
    with family() as running:
        running.engine.script = running.ids("Yes.")
        assert response(running)["store"] is False
        assert "--responses-store-size" in refusal(running, store=True)["message"]
        assert refusal(running, background=True)["param"] == "background"


def test_the_store_keeps_within_its_bounds_and_forgets_the_least_recently_used(tmp_path: Path) -> None:
    options = ResponseStoreOptions(responses_store_entries=32)
    with family(responses_dir=str(tmp_path), response_store=options) as running:
        running.engine.script = running.ids("Yes.")
        kept = response(running, max_output_tokens=5)["id"]
        ids = []
        for _ in range(60):
            ids.append(response(running, max_output_tokens=5)["id"])
            assert get(running, kept).status_code == 200
            assert len(list(tmp_path.glob("*.json"))) <= 32
        assert get(running, ids[0]).status_code == 404
        assert get(running, ids[-1]).status_code == 200


# -------------------------------------------------------------------------------------------------------- background


def test_a_background_response_is_polled_until_it_is_complete(served: Family) -> None:
    served.engine.allow(2)
    begun = response(served, background=True)
    assert (begun["status"], begun["background"], begun["output"]) == ("queued", True, [])
    assert get(served, begun["id"]).json()["status"] == "in_progress"
    assert refusal(served, previous_response_id=begun["id"])["param"] == "previous_response_id"
    served.engine.allow(None)
    wait_until(lambda: get(served, begun["id"]).json()["status"] == "completed", "the response")
    body = get(served, begun["id"]).json()
    assert body["output"][0]["content"][0]["text"] == "The answer is 42."
    cancelled = served.client.post(f"/v1/responses/{begun['id']}/cancel").json()
    assert cancelled["status"] == "completed"


def test_a_cancelled_response_stops_the_engine_and_stays_cancelled(served: Family) -> None:
    served.engine.script = None
    served.engine.allow(2)
    begun = response(served, background=True)
    served.engine.wait_for(lambda: bool(served.engine.running), "the request")
    request_id = served.engine.seen.submits[-1].request_id
    cancelled = served.client.post(f"/v1/responses/{begun['id']}/cancel").json()
    assert cancelled["status"] == "cancelled"
    served.engine.wait_for(lambda: request_id in served.engine.seen.aborted, "the abort")
    assert get(served, begun["id"]).json()["status"] == "cancelled"


def test_a_refused_background_response_has_failed(served: Family) -> None:
    served.engine.reject = lambda submit: Rejected(submit.request_id, "queue_full", "full", 2.5, 4)
    begun = response(served, background=True)
    wait_until(lambda: get(served, begun["id"]).json()["status"] == "failed", "the failure")
    assert get(served, begun["id"]).json()["error"]["code"] == "rate_limit_exceeded"


def test_a_server_that_stops_ends_what_it_makes_in_the_background(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with family(responses_dir=str(tmp_path)) as running:
        running.engine.allow(2)
        response(running, background=True)
        running.engine.wait_for(lambda: bool(running.engine.running), "the request")
        request_id = running.engine.seen.submits[-1].request_id
        running.client.close()
        running.drain()
        running.engine.wait_for(lambda: request_id in running.engine.seen.aborted, "the abort")
        assert running.ended.wait(LIMIT_S)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_only_background_responses_can_be_cancelled(served: Family) -> None:
    body = response(served)
    reply = served.client.post(f"/v1/responses/{body['id']}/cancel")
    assert reply.status_code == 400
    assert get(served, body["id"], params={"stream": "true"}).status_code == 400
