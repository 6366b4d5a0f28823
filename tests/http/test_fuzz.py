"""Whatever is sent, every endpoint answers in time with a documented status in the documented form, and never breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from fuzzed_bodies import broken
from http_family import Family, family
from hypothesis import HealthCheck, Phase, given, settings
from msgspec import Struct
from penstock.server.api.openapi import describe_operation, error_schema, openapi
from penstock.server.api.surface import OPERATIONS, Operation, fields_of
from penstock.server.config import ResponseStoreOptions
from penstock.server.limits import LimitOptions
from requests_of_all import ALL_TASKS, RICH, VALID, taking_bodies
from schemathesis.generation.modes import GenerationMode

LIMIT_S = 5.0
MODELS = ["tiny", "alias"]
BY_SCHEMA = 14  # examples of each mode for an operation with a body
WITHOUT_BODY = 4
BROKEN = 30
DOCUMENT = openapi(OPERATIONS, "1.2.3", models=MODELS)
QUESTION = {"prompt": "Hello there", "max_tokens": 9, "temperature": 0}


def examples(count: int) -> settings:
    """The same at every run; failures are reported as they are found, without a search for smaller ones."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    limits = LimitOptions(max_n=4, max_request_bytes=100_000)
    folder = str(tmp_path_factory.mktemp("responses"))
    store = ResponseStoreOptions()
    with family(
        engine={**ALL_TASKS, "tokens_per_step": 256},
        limits=limits,
        responses_dir=folder,
        response_store=store,
    ) as running:
        running.client.timeout = httpx.Timeout(LIMIT_S)
        before = running.client.post("/v1/completions", json=QUESTION).json()["choices"]
        yield running
        assert running.client.post("/v1/completions", json=QUESTION).json()["choices"] == before
        assert running.metric("concurrent_requests") == 0
        assert not running.services.link.num_outstanding


def checker(operation: Operation) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for({**DOCUMENT, **error_schema(operation)})


def assert_sound(operation: Operation, status: int, content_type: str, content: bytes) -> None:
    """The answer is one that the description announces."""
    said = (operation.method, operation.path, status, content[:300])
    assert status < 500, said
    assert str(status) in describe_operation(operation)["responses"], said
    kind = content_type.partition(";")[0]
    if status != 200:
        assert kind == "application/json", said
        assert checker(operation).is_valid(json.loads(content)), said
        assert len(content) < 2000, said
        return
    assert kind in operation.answers, said
    if kind == "application/json":
        json.loads(content)
    if kind == "text/event-stream":
        for line in content.decode().splitlines():
            assert not line.startswith("event: error"), said
            if line.startswith("data: ") and line != "data: [DONE]":
                assert "error" not in json.loads(line[6:]) or json.loads(line[6:])["error"] is None, said


def operation_of(case: Any) -> Operation:
    return next(
        each
        for each in OPERATIONS
        if each.method == case.method.upper() and each.path.replace(":path", "") == case.path
    )


def described_operations() -> Iterator[Any]:
    for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations():
        yield pytest.param(found.ok(), id=found.ok().label)


@pytest.mark.parametrize("described", [*described_operations()])
@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "unfitting"]
)
def test_what_the_description_suggests_is_answered(
    served: Family, described: Any, mode: GenerationMode
) -> None:
    answered = 0
    has_body = bool(described.body)
    if mode is GenerationMode.NEGATIVE and not has_body:
        return

    @examples(BY_SCHEMA if has_body else WITHOUT_BODY)
    @given(case=described.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal answered
        reply = case.call(base_url=served.url, timeout=LIMIT_S)
        kind = reply.headers.get("content-type", [""])[0]
        assert_sound(operation_of(case), reply.status_code, kind, reply.content)
        answered += reply.status_code == 200

    send()
    if mode is GenerationMode.POSITIVE and has_body:
        assert answered, "the schema says too little: nothing that it suggests can be done"


def bodies() -> Iterator[Any]:
    for operation, struct in taking_bodies():
        yield pytest.param(operation, struct, id=f"{operation.path}-{struct.__name__}")


@pytest.mark.parametrize(("operation", "struct"), [*bodies()])
def test_a_broken_body_is_refused_or_answered(
    served: Family, operation: Operation, struct: type[Struct]
) -> None:
    fields = [field.name for field in fields_of(struct)]

    @examples(BROKEN)
    @given(body=broken(RICH[struct], fields))
    def send(body: bytes) -> None:
        reply = served.client.post(operation.path, content=body)
        assert_sound(operation, reply.status_code, reply.headers.get("content-type", ""), reply.content)

    send()


@pytest.mark.parametrize(
    "value", ["", "x", "9" * 5000, "-1", "1_0", "7 8", "\xff", "2147483648", "1e3", "0x1"]
)
def test_strange_headers_do_no_harm(served: Family, value: str) -> None:
    for name in ("x-vllm-priority", "x-request-id", "authorization", "x-api-key", "content-type", "accept"):
        for operation, struct in taking_bodies():
            reply = served.client.post(
                operation.path, json=VALID[struct], headers={name: value.encode("latin-1")}
            )
            assert_sound(operation, reply.status_code, reply.headers.get("content-type", ""), reply.content)


@pytest.mark.parametrize(
    "engine",
    [{}, {"tasks": ("embed",), "pooling": ALL_TASKS["pooling"]}],
    ids=["no pooling", "no generation"],
)
def test_what_a_model_cannot_do_is_an_error_of_the_client(engine: dict[str, Any]) -> None:
    with family(engine=engine) as running:
        for operation, struct in taking_bodies():
            reply = running.client.post(operation.path, json=VALID[struct])
            assert_sound(operation, reply.status_code, reply.headers.get("content-type", ""), reply.content)


def test_before_the_engine_is_ready_everything_is_answered() -> None:
    with family(wait=False) as running:
        for operation in OPERATIONS:
            path = operation.path.partition("{")[0]
            for body in operation.bodies or (None,):
                content = None if body is None else json.dumps(VALID[body])
                reply = running.client.request(operation.method, path, content=content)
                assert reply.status_code in (200, 400, 404, 405, 503), (operation.path, reply.text)
                if reply.status_code == 503:
                    assert operation.path == "/ready" or reply.headers["retry-after"]
                    assert checker(operation).is_valid(reply.json())
