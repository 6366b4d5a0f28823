"""The table of the HTTP surface is what the server does: its paths, every field's fate, who may call what, the two
descriptions made from it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import penstock
import pytest
import schemathesis
from http_family import Family, family
from msgspec import Struct
from penstock.server.api.fields import FIELDS, IGNORED, OWN_NOTES
from penstock.server.api.openapi import openapi
from penstock.server.api.protocol import ChatRequest, CompletionRequest
from penstock.server.api.reference import page
from penstock.server.api.responses.protocol import ResponsesRequest
from penstock.server.api.surface import OPERATIONS, REFUSED, Operation, bodies, described, fields_of
from penstock.server.http.app import routes_of
from requests_of_all import ALL_TASKS, INSIDE, RICH, VALID, path_of, taking_bodies, with_field

DOCS = Path(penstock.__file__).resolve().parent / "docs"
KEY = "sk-do-not-show-me-5309"
OPEN = {"/health", "/ready"}
VOLATILE = {"id", "created", "created_at", "completed_at", "request_id", "e2e_latency"}
# A value that asks for something, where not every one does.
REAL: dict[str, Any] = {
    "n": 2,
    "best_of": 2,
    "prompt_logprobs": 1,
    "typical_p": 0.5,
    "adapter_id": "x",
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "return_metrics": True,
    "watermark": True,
    "use_beam_search": True,
    "return_hidden_states": True,
    "length_penalty": 1.5,
    "suffix": "x",
}
IDLE: dict[str, Any] = {
    "spaces_between_special_tokens": False,
    "store": True,
    "metadata": {"a": "b"},
    "max_tool_calls": 1,
    "stream_options": {"include_usage": True},
    "summary": "auto",
    "cache_control": {"type": "ephemeral"},
    "service_tier": "standard_only",
    "embed_dtype": "float32",
    "endianness": "little",
    "disable_additional_properties": True,
    "disable_fallback": True,
}


def names(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family(engine=ALL_TASKS) as running:
        yield running


# ----------------------------------------------------------------------------------------------------- the table


def test_every_operation_has_a_handler_and_every_handler_an_operation() -> None:
    handlers: dict = {(each.method, each.path): print for each in OPERATIONS}
    assert len(routes_of(OPERATIONS, handlers)) == len(OPERATIONS) == len(handlers)
    with pytest.raises(AssertionError, match="/v1/extra"):
        routes_of(OPERATIONS, {**handlers, ("GET", "/v1/extra"): print})
    with pytest.raises(AssertionError, match="/health"):
        routes_of(OPERATIONS, {key: value for key, value in handlers.items() if key != ("GET", "/health")})


def test_what_answers_get_answers_head_and_nothing_else_does(served: Family) -> None:
    gets = {each.path for each in OPERATIONS if each.method == "GET"}
    for operation in OPERATIONS:
        if "{" not in operation.path:
            status = served.client.head(operation.path).status_code
            assert status in ((200,) if operation.path in gets else (404, 405)), operation.path
    assert served.client.put("/health").status_code == 405


def test_every_valid_request_is_answered(served: Family) -> None:
    for operation, struct in taking_bodies():
        for body in (VALID[struct], RICH[struct]):
            reply = served.client.post(operation.path, json=body)
            assert reply.status_code == 200, (operation.path, reply.text)
            assert reply.headers["content-type"].partition(";")[0] in operation.answers


# ---------------------------------------------------------------------------------------------------- the fields


def test_every_field_has_a_note_and_every_note_a_field() -> None:
    used, own = set(), set()
    for struct in described():
        for field in fields_of(struct):
            assert field.note, f"{struct.__name__}.{field.name} has no note in server/api/fields.py"
            assert "\n" not in field.note
            assert "|" not in field.note
            if (struct, field.name) in OWN_NOTES:
                own.add((struct, field.name))
            else:
                used.add(field.name)
    assert set(FIELDS) == used
    assert set(OWN_NOTES) == own


def test_every_refused_and_ignored_field_exists() -> None:
    for struct, found in [*REFUSED.items(), *IGNORED.items()]:
        assert found <= set(struct.__struct_fields__), struct
        assert struct in VALID or struct in INSIDE


def listed(table: dict[type[Struct], frozenset[str]]) -> list[Any]:
    return [
        pytest.param(struct, name, id=f"{struct.__name__}-{name}")
        for struct, fields in table.items()
        for name in sorted(fields)
    ]


@pytest.mark.parametrize(("struct", "name"), listed(REFUSED))
def test_a_refused_field_is_an_error_that_names_it(served: Family, struct: type[Struct], name: str) -> None:
    whole, body = with_field(struct, name, REAL.get(name, ["x"]))
    reply = served.client.post(path_of(whole), json=body)
    assert reply.status_code in (400, 422), reply.text
    found = reply.json()["error"]
    message = found if isinstance(found, str) else found["message"]
    assert re.search(rf"(^|\.){name}: ", message), message


@pytest.mark.parametrize(("struct", "name"), listed(REFUSED))
def test_a_refused_field_that_asks_for_nothing_is_no_error(
    served: Family, struct: type[Struct], name: str
) -> None:
    whole, body = with_field(struct, name, None)
    assert served.client.post(path_of(whole), json=body).status_code == 200


@pytest.mark.parametrize(("struct", "name"), listed(IGNORED))
def test_an_ignored_field_leaves_the_answer_as_it_is(served: Family, struct: type[Struct], name: str) -> None:
    whole, body = with_field(struct, name, IDLE.get(name, "x"))
    if name == "metadata" and whole is not ResponsesRequest and "user_id" in str(fields_of(struct)):
        body["metadata"] = {"user_id": "x"}
    plain = with_field(struct, name, None)[1]
    answers = []
    for each in (body, plain):
        reply = served.client.post(path_of(whole), json=each)
        assert reply.status_code == 200, reply.text
        answers.append(lasting(reply.json(), {*VOLATILE, name}))
    assert answers[0] == answers[1]


def lasting(value: Any, volatile: set[str]) -> Any:
    """Without what differs between any two answers."""
    if isinstance(value, dict):
        return {name: lasting(held, volatile) for name, held in value.items() if name not in volatile}
    return [lasting(each, volatile) for each in value] if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------- the descriptions


def test_the_reference_page_is_up_to_date() -> None:
    """If this fails: `python -m penstock.server.api.reference > docs/api.md`."""
    assert (DOCS / "api.md").read_text() == page()


def test_the_description_is_valid_openapi_and_describes_what_the_server_has(served: Family) -> None:
    reply = served.client.get("/openapi.json")
    made = openapi(OPERATIONS, "1.2.3", models=["tiny", "alias"])
    assert reply.json() == made == served.client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(reply.json())
    schema.validate()
    assert {(each.ok().method.upper(), each.ok().path) for each in schema.get_all_operations()} == {
        (each.method, each.path.replace(":path", "")) for each in OPERATIONS
    }
    assert len(
        {each["operationId"] for path in reply.json()["paths"].values() for each in path.values()}
    ) == len(OPERATIONS)


def test_schemas_are_valid_under_plain_names_and_take_the_valid_bodies() -> None:
    whole = openapi(OPERATIONS, "1")
    schemas = whole["components"]["schemas"]
    assert set(schemas) >= {struct.__name__ for struct in described()}
    for name, schema in schemas.items():
        assert re.fullmatch(r"[A-Za-z]+", name)
        assert jsonschema_rs.meta.is_valid(schema), name
    for struct in bodies():
        checker = jsonschema_rs.validator_for({**whole, "$ref": f"#/components/schemas/{struct.__name__}"})
        checker.validate(VALID[struct])
        checker.validate(RICH[struct])
        assert not checker.is_valid({})


def test_refused_fields_are_no_part_of_the_schemas() -> None:
    schemas = openapi(OPERATIONS, "1")["components"]["schemas"]
    for struct, refused in REFUSED.items():
        assert not refused & set(schemas[struct.__name__]["properties"])


def test_a_proxys_prefix_is_in_the_description() -> None:
    with family(root_path="/llm") as behind:
        assert behind.client.get("/openapi.json").json()["servers"] == [{"url": "/llm"}]


# ------------------------------------------------------------------------------------------------------- the keys


def calls() -> Iterator[tuple[str, str]]:
    for operation in OPERATIONS:
        yield operation.method, re.sub(r"\{.*?\}", "x", operation.path)
    yield from (("GET", "/nowhere"), ("POST", "/v1/nowhere"), ("GET", "/docs"), ("GET", "//health"))
    yield from (("GET", "/health/"), ("GET", "/ready/.."), ("GET", "/%68ealth/x"), ("OPTIONS", "/v1/models"))


@pytest.mark.parametrize("open_metrics", [False, True])
def test_without_a_key_only_the_probes_answer(open_metrics: bool) -> None:
    open_paths = OPEN | ({"/metrics"} if open_metrics else set())
    with family(api_keys=[KEY], open_metrics=open_metrics, engine=ALL_TASKS) as guarded:
        for method, path in calls():
            for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"x-api-key": KEY.upper()}):
                reply = guarded.client.request(method, path, headers=headers)
                assert reply.status_code == (200 if path in open_paths else 401), (method, path)
                if path not in open_paths:
                    assert KEY not in reply.text
                    assert "error" in reply.json()
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
            assert guarded.client.get("/v1/models", headers=headers).status_code == 200
            assert guarded.client.get("/nowhere", headers=headers).status_code == 404


def test_a_key_is_never_logged_or_returned(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    said = []
    with (
        caplog.at_level(logging.DEBUG),
        family(api_keys=[KEY], log_requests=True, engine=ALL_TASKS, log_level="debug") as guarded,
    ):
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"Authorization": KEY}):
            for operation in OPERATIONS:
                path = re.sub(r"\{.*?\}", "x", operation.path)
                bodies_ = [json.dumps(VALID[body]) for body in operation.bodies] or [None]
                for body in (*bodies_, "{"):
                    reply = guarded.client.request(operation.method, path, headers=headers, content=body)
                    said.append(reply.text)
                    said.append(str(reply.headers))
    captured = capfd.readouterr()
    for text in (
        *said,
        caplog.text,
        captured.out,
        captured.err,
        *(str(each.args) for each in caplog.records),
    ):
        assert KEY not in text


# ------------------------------------------------------------------- fields that had no effect before they were listed


def test_stream_interval_spares_events_in_every_streaming_api(served: Family) -> None:
    for struct in (ChatRequest, CompletionRequest, ResponsesRequest):
        most = {"max_output_tokens" if struct is ResponsesRequest else "max_tokens": 12}
        body = {**VALID[struct], **most, "stream": True}
        each, spared = (
            served.client.post(path_of(struct), json={**body, "stream_interval": interval}).text.count(
                "data: "
            )
            for interval in (1, 6)
        )
        assert spared < each


def test_verbosity_is_given_to_the_chat_template() -> None:
    template = "{{ messages[0].content }} ({{ verbosity }})"
    with family(chat_template=template) as running:
        body = {**VALID[ChatRequest], "verbosity": "low"}
        assert running.client.post("/apply-template", json=body).json()["prompt"].endswith("(low)")
        assert running.client.post("/apply-template", json={**body, "verbosity": "x"}).status_code == 400
